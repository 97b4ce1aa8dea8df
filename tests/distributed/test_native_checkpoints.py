"""Checkpoints of a plain DeepSpeed script are read, and those we write it resumes with the same losses."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from workers import torchrun

from pipeline import checkpoints
from pipeline.checkpoints import stream, zero_read, zero_write
from pipeline.state import State


def write(state: State, folder: Path, **how) -> None:
    stream.write(zero_write.files(state, folder, **how), folder, workers=2)


def train(tmp: Path, *, stage: int, world: int, first: int, steps: int, load: Path | None = None, save: Path | None = None, **more) -> list[float]:
    places = {name: {"dir": str(path.parent), "tag": path.name} if path else None for name, path in (("load", load), ("save", save))}
    out = tmp / f"losses-{stage}-{world}-{first}.json"
    torchrun("plain_deepspeed.py", {"stage": stage, "first": first, "steps": steps, "seed": 3 + first, "out": str(out), **places, **more}, world)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> list[float]:
    tmp = tmp_path_factory.mktemp("whole")
    return train(tmp, stage=2, world=2, first=0, steps=6)


@pytest.mark.parametrize("stage, world, to_stage, to_world", [(2, 2, 3, 2), (3, 2, 1, 1), (1, 2, 2, 3), (3, 3, 3, 2)])
def test_a_plain_script_resumes_what_we_rewrite(tmp_path, uninterrupted, stage, world, to_stage, to_world):
    """Three steps, our reader and writer (other stage, other world size), three more: the losses of six in one go.

    1e-5: ZeRO's stages and world sizes sum gradients in other orders; float32 leaves at most 1e-6 after six steps.
    """
    train(tmp_path, stage=stage, world=world, first=0, steps=3, save=tmp_path / "theirs" / "three")
    state = zero_read.read(tmp_path / "theirs" / "three")
    ours = tmp_path / "ours" / "three"
    ours.mkdir(parents=True)
    write(state, ours, stage=to_stage, world=to_world, step=3)
    losses = train(tmp_path, stage=to_stage, world=to_world, first=3, steps=3, load=ours)
    assert losses == pytest.approx(uninterrupted[3:], abs=1e-5)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_what_we_write_reads_back_to_the_bit(tmp_path, stage):
    state = State(**_random_state())
    write(state, tmp_path, stage=stage, world=3)
    again = zero_read.read(tmp_path)
    assert again.groups == state.groups and again.steps == state.steps
    for name, entry in state.tensors.items():
        assert torch.equal(again.tensors[name].open(), entry.open())
        for slot in zero_write.SLOTS:
            assert torch.equal(again.slots[slot][name].open(), state.slots[slot][name].open())


def _random_state() -> dict:
    from pipeline.state import Group, in_memory

    shapes = {"a": (5, 7), "b": (3,), "c": (1,), "d": (11, 2, 2)}
    make = lambda: in_memory((name, torch.randn(shape)) for name, shape in shapes.items())  # noqa: E731
    groups = (Group(("a", "d"), {"lr": 0.1, "weight_decay": 0.1}), Group(("b", "c"), {"lr": 0.1, "weight_decay": 0.0}))
    return {"tensors": make(), "slots": {slot: make() for slot in zero_write.SLOTS}, "steps": dict.fromkeys(shapes, 4.0), "groups": groups}


def test_universal_of_ours_resumes_in_a_plain_script(tmp_path, uninterrupted):
    train(tmp_path, stage=2, world=2, first=0, steps=3, save=tmp_path / "theirs" / "three")
    state = zero_read.read(tmp_path / "theirs" / "three")
    ours = tmp_path / "ours" / "three"
    ours.mkdir(parents=True)
    stream.write(checkpoints.universal.files(state, ours, step=3), ours)
    again = checkpoints.universal.read(ours)
    assert all(torch.equal(again.tensors[n].open(), e.open()) for n, e in state.tensors.items())
    losses = train(tmp_path, stage=1, world=1, first=3, steps=3, load=ours, universal=True)
    assert losses == pytest.approx(uninterrupted[3:], abs=1e-5)


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
