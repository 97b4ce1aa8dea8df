"""Optimizers other than AdamW: what a plain DeepSpeed script trained with SGD and momentum wrote, in any other layout.

torch's SGD counts no steps and keeps one slot, so nothing of AdamW may be taken for granted on the way.
"""

from pathlib import Path

import pytest

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout
from pipeline.optim.optimizers import SGD
from tests.helpers.same_state import require_same, resharded

SGD_JOB = {"optimizer": "sgd"}


@pytest.fixture(scope="module")
def uninterrupted(workers) -> list[float]:
    """The losses of five steps."""
    return workers.train(stage=1, world=2, first=0, steps=5, **SGD_JOB)


@pytest.fixture(scope="module", params=[1, 3], ids=lambda stage: f"stage {stage}")
def source(request, tmp_path_factory, workers) -> Path:
    """Two steps on two ranks."""
    folder = tmp_path_factory.mktemp("source")
    workers.train(stage=request.param, world=2, first=0, steps=2, save=folder / "theirs" / "two", **SGD_JOB)
    return folder / "theirs" / "two"


LAYOUTS = [
    (CheckpointLayout("zero", 1, 3), 1),
    (CheckpointLayout("zero", 3, 3), 3),
    (CheckpointLayout("universal", world_size=3), 2),
]


@pytest.mark.parametrize("layout, stage", LAYOUTS, ids=["stage 1", "stage 3", "universal in stage 2"])
def test_the_script_goes_on_as_if_nothing_had_been(tmp_path, workers, source, uninterrupted, layout, stage):
    """What its engine holds after the load is, to the bit, what the source held. Losses to 1e-5: other stages and
    numbers of ranks sum gradients in another order (the parity test's tolerance)."""
    ours, again = resharded(source, tmp_path / "ours" / "two", layout), tmp_path / "again" / "two"
    before = checkpoints.raw(source)
    assert isinstance(before.optimizer(), SGD) and before.optimizer().momentum == 0.9
    assert (before.step, before.steps, set(before.slots)) == (2, {}, {"momentum_buffer"})
    require_same(before, checkpoints.raw(ours))
    universal = layout.kind.load_universal
    losses = workers.train(
        stage=stage, world=3, first=2, steps=3, load=ours, again=again, universal=universal, **SGD_JOB
    )
    require_same(before, checkpoints.raw(again))
    assert losses == pytest.approx(uninterrupted[2:], abs=1e-5)


def test_stage_0_is_read_too(tmp_path, workers):
    workers.train(stage=0, world=1, first=0, steps=2, save=tmp_path / "theirs" / "two", **SGD_JOB)
    before = checkpoints.raw(tmp_path / "theirs" / "two")
    assert isinstance(before.optimizer(), SGD) and len(before.slots["momentum_buffer"]) == len(before.tensors)
    ours = resharded(tmp_path / "theirs" / "two", tmp_path / "ours", CheckpointLayout("zero", 2, 2))
    require_same(before, checkpoints.raw(ours))
