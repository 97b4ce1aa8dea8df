"""Numbers that are infinite or NaN are found wherever they stand, and only where they mean something."""

import math

import pytest
import torch

from pipeline.checkpoints.finite import CHUNK, not_finite
from pipeline.training.saving import _spans


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("place", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 4])
def test_one_number_is_found(number, dtype, place):
    weights = torch.ones(2 * CHUNK + 5, dtype=dtype)
    content = {"module": {"a": torch.ones(3), "b": weights}, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}
    assert not_finite(content) is None
    weights[place] = number
    assert not_finite(content) == "module.b"


def test_large_numbers_are_no_infinity():
    most = torch.finfo(torch.float32).max
    content = {"a": torch.full((CHUNK,), most), "b": torch.full((9,), 60000.0, dtype=torch.float16)}
    assert not_finite(content) is None


def test_buffers_and_integers_hold_what_they_want():
    mask = torch.full((4,), -math.inf)
    assert not_finite({"module": {"mask": mask, "ids": torch.arange(4)}, "buffer_names": ["mask"]}) is None
    assert not_finite({"module": {"mask": mask}, "buffer_names": []}) == "module.mask"


def test_what_pads_the_shares_of_stage_3():
    """A share of 4 of a parameter with 6 elements, and one of 2 of a parameter with 1: on the second of two ranks."""
    spans = [_spans([(4, 6), (2, 1)], rank=1)]
    assert spans == [[(0, 2), (4, 4)]] and _spans([(4, 6), (2, 1)], rank=0) == [(0, 4), (4, 5)]
    flat, moment = torch.ones(6), torch.ones(6)
    flat[2:] = math.nan
    moment[5] = math.inf
    inner = {"state": {0: {"exp_avg": moment, "step": torch.tensor(3.0)}}}
    content = {"optimizer_state_dict": {"fp32_flat_groups": [flat], "optimizer_state_dict": inner}}
    assert not_finite(content, spans) is None
    assert not_finite(content) == "optimizer_state_dict.fp32_flat_groups.0"
    moment[1] = math.nan
    assert not_finite(content, spans) == "optimizer_state_dict.optimizer_state_dict.state.0.exp_avg"
