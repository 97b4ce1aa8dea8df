"""Two halves of an evaluation set: together all of it, never the same sample, the same in every run."""

import numpy as np
import pytest
import torch

from pipeline import config
from pipeline.data import evaluated, evaluation_batches, prepare
from pipeline.errors import UserError
from tests.helpers.cli import ROOT


@pytest.mark.parametrize("kind", ["text", "images"])
@pytest.mark.parametrize("size", [2, 3, 101, 4096])
def test_halves_are_all_and_share_nothing(kind, size):
    validation, test = (evaluated(part, kind, size) for part in ("validation", "test"))
    assert np.array_equal(np.sort(np.concatenate([validation, test])), evaluated("all", kind, size))
    assert abs(len(validation) - len(test)) <= 1
    assert np.array_equal(test, evaluated("test", kind, size))


def test_halves_of_images_that_lie_class_by_class_have_all_classes():
    classes = np.repeat(np.arange(10), 100)
    for part in ("validation", "test"):
        counts = np.bincount(classes[evaluated(part, "images", 1000)], minlength=10)
        assert counts.min() > 30, counts


def test_a_set_of_one_sample_has_no_halves():
    with pytest.raises(UserError, match=r"data.evaluate: test is a half of the evaluation set, which has 1 sample"):
        evaluated("test", "text", 1)


@pytest.mark.parametrize("shipped", ["quickstart/bert", "quickstart/vit"])
def test_what_is_read_is_the_half(tmp_path, shipped):
    data = config.load(ROOT / "configs" / f"{shipped}.yaml", []).data
    prepared = prepare(data, 0, tmp_path / "data")

    def labels(part, rank=0, world=1):
        own = data.model_copy(update={"evaluate": part})
        read = evaluation_batches(prepared, own, 0, micro_batch=16, rank=rank, world=world)
        return [batch.labels[: batch.valid] for batch in read]

    whole = torch.cat(labels("all"))
    for part in ("validation", "test"):
        expected = whole[evaluated(part, data.kind, prepared.facts["evaluation"])]
        assert torch.equal(torch.cat(labels(part)), expected)
        both = torch.cat([*labels(part, 0, 2), *labels(part, 1, 2)])
        assert sorted(map(tuple, both.view(len(both), -1).tolist())) == sorted(
            map(tuple, expected.view(len(expected), -1).tolist())
        )
