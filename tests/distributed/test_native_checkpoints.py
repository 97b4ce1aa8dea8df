"""Native files: what our writer lays out our reader gives back; files that do not belong together are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import checkpoints
from pipeline.checkpoints.layouts import bf16_optimizer_write, zero_read, zero_write
from pipeline.checkpoints.serialization.writer_pool import write_files
from pipeline.checkpoints.state import State

SLOTS = ("exp_avg", "exp_avg_sq")


def write(state: State, folder: Path, **how) -> None:
    write_files(zero_write.files(state, folder, **how), folder, workers=2)


@pytest.mark.parametrize("stage", [1, 2, 3, "1 with fp32 sums"])
def test_what_we_write_reads_back_to_the_bit(tmp_path, stage):
    state = State(**_random_state())
    if isinstance(stage, int):
        write(state, tmp_path, stage=stage, world=3)
    else:
        write_files(bf16_optimizer_write.files(state, tmp_path, world=3), tmp_path, workers=2)
    again = zero_read.read(tmp_path)
    assert again.groups == state.groups and (again.step, again.steps) == (state.step, state.steps)
    for name, entry in state.tensors.items():
        assert torch.equal(again.tensors[name].tensor(), entry.tensor())
        for slot in SLOTS:
            assert torch.equal(again.slots[slot][name].tensor(), state.slots[slot][name].tensor())


def _random_state() -> dict:
    from pipeline.checkpoints.state import Group
    from pipeline.checkpoints.tensors import LazyTensor, in_memory

    shapes = {"a": (5, 7), "b": (3,), "c": (1,), "d": (11, 2, 2)}

    def random_tensors() -> dict[str, LazyTensor]:
        return in_memory((name, torch.randn(shape)) for name, shape in shapes.items())

    groups = (Group(("a", "d"), {"lr": 0.1, "weight_decay": 0.1}), Group(("b", "c"), {"lr": 0.1, "weight_decay": 0.0}))
    return {
        "tensors": random_tensors(),
        "slots": {slot: random_tensors() for slot in SLOTS},
        "step": 4,
        "steps": dict.fromkeys(shapes, 4.0),
        "groups": groups,
    }


def test_a_missing_rank_is_named(tmp_path):
    state = State(**_random_state())
    write(state, tmp_path, stage=2, world=3)
    (tmp_path / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(checkpoints.UserError, match="the optimizer file of rank 1 is missing"):
        zero_read.read(tmp_path)
    write(replace(state), tmp_path, stage=2, world=3)
    (tmp_path / "zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(checkpoints.UserError, match="written by 3 ranks, 2 optimizer files found"):
        zero_read.read(tmp_path)
