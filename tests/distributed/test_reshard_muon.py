"""DeepSpeed's Muon, as a plain script trains by it: its state in any other layout, whose engine goes on from there."""

from pathlib import Path

import pytest

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout, diff, integrity, reshard
from pipeline.optim.optimizers import Muon
from tests.helpers.same_state import require_same, resharded

JOB = {"optimizer": "muon", "zero": {"reduce_scatter": False}}
"""Stage 3 of DeepSpeed refuses Muon otherwise."""
TOLERANCE = 1e-3
"""Of losses: other numbers of ranks sum gradients in another order, and updates are orthogonalised in fp16, where the
device has it, at a rate of 2e-2."""


@pytest.fixture(scope="module")
def uninterrupted(workers) -> list[float]:
    """The losses of four steps."""
    return workers.train(stage=1, world=2, first=0, steps=4, **JOB)


@pytest.fixture(scope="module", params=[0, 1, 2, 3], ids=lambda stage: f"stage {stage}")
def source(request, tmp_path_factory, workers) -> Path:
    """Two steps on two ranks."""
    folder = tmp_path_factory.mktemp("source")
    workers.train(stage=request.param, world=2, first=0, steps=2, save=folder / "theirs" / "two", **JOB)
    return folder / "theirs" / "two"


def test_it_is_recognised(source):
    """By DeepSpeed's rule everything with two axes is Muon's that is called neither embedding nor head."""
    state = checkpoints.raw(source)
    integrity.require_agreement(source, state)
    assert state.optimizer() == Muon(momentum=0.9, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-10)
    matrices = {name for name, tensor in state.tensors.items() if len(tensor.shape) == 2 and "embed" not in name}
    assert set(state.slots["momentum_buffer"]) == matrices and set(state.slots["exp_avg"]).isdisjoint(matrices)
    assert set(state.steps) == set(state.slots["exp_avg"]) and set(state.steps.values()) == {2.0}
    assert all(bool(tensor.tensor().any()) for tensor in state.slots["momentum_buffer"].values())


LAYOUTS = [CheckpointLayout("zero", stage, 3) for stage in range(4)]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"to stage {layout.zero_stage}")
def test_the_script_goes_on_as_if_nothing_had_been(tmp_path, workers, source, uninterrupted, layout):
    """What its engine holds behind the load is, to the bit, what the source held."""
    ours, again = resharded(source, tmp_path / "ours" / "two", layout), tmp_path / "again" / "two"
    before = checkpoints.raw(source)
    require_same(before, checkpoints.raw(ours))
    losses = workers.train(stage=layout.zero_stage, world=3, first=2, steps=2, load=ours, again=again, **JOB)
    require_same(before, checkpoints.raw(again))
    assert losses == pytest.approx(uninterrupted[2:], abs=TOLERANCE)


def test_universal_files_hold_it_and_give_it_back(tmp_path, source):
    plan = reshard.plan_reshard(source, CheckpointLayout("universal"))
    assert any("cuts Muon's momentum as it cuts weights" in line for line in reshard.remarks(plan))
    ours = resharded(source, tmp_path / "universal", CheckpointLayout("universal"))
    assert diff.compare(source, ours).equal
    require_same(checkpoints.raw(source), checkpoints.raw(ours))
    for layout in LAYOUTS:
        back = resharded(ours, tmp_path / f"back{layout.zero_stage}", layout)
        require_same(checkpoints.raw(source), checkpoints.raw(back))
