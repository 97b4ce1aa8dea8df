"""Which checkpoints stay: the last, every n-th step, the best."""

import errno
import math
import shutil

import pytest

from pipeline.checkpoints import manifest, publish, retention
from pipeline.config.schema import Retention, TrainStage
from pipeline.durations import Pace
from pipeline.errors import UserError
from pipeline.training.stage import require_best_known

LOSSES = {100: 3.0, 200: 1.0, 300: None, 400: 1.5, 500: math.nan, 600: 2.0}


@pytest.fixture
def folder(tmp_path):
    for step, loss in LOSSES.items():
        staged = publish.staging(tmp_path / f"step-{step:07d}")
        (staged / "weights").write_bytes(b"w")
        facts = {} if loss is None else {retention.EVALUATION: loss}
        publish.publish(staged, tmp_path / f"step-{step:07d}", {"step": step, **facts})
    return tmp_path


@pytest.mark.parametrize(
    "keep, expected",
    [
        ({"last": 2}, {500, 600}),
        ({"last": 1, "best": True}, {200, 600}),
        ({"last": 1, "every": 300}, {300, 600}),
        ({"last": 1, "every": 200, "best": True}, {200, 400, 600}),
        ({"last": 9}, set(LOSSES)),
    ],
)
def test_what_stays(folder, keep, expected):
    retention.prune(folder, Retention(**keep))
    assert {int(path.name[5:]) for path in folder.iterdir()} == expected


def test_what_cannot_be_removed_yet_is_no_checkpoint_and_ends_no_run(folder, monkeypatch):
    """A reader on NFS holds a file of it; when it has gone the next save takes it along."""
    real = shutil.rmtree

    def busy(path, *arguments, **options) -> None:
        if path.name == "step-0000200":
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        real(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", busy)
    retention.prune(folder, Retention(last=1))
    assert [path.name for path in publish.complete(folder)] == ["step-0000600"]
    assert (folder / "step-0000200").exists()
    monkeypatch.undo()
    retention.prune(folder, Retention(last=1))
    assert [path.name for path in folder.iterdir()] == ["step-0000600"]


def test_a_damaged_one_is_not_the_best(folder):
    with (folder / "step-0000200" / manifest.NAME).open("a") as file:
        file.write(" ")
    retention.prune(folder, Retention(last=1, best=True))
    assert {path.name for path in folder.iterdir()} == {"step-0000400", "step-0000600"}


def test_nobody_was_evaluated(tmp_path):
    for name in ("step-0000001", "step-0000002"):
        publish.publish(publish.staging(tmp_path / name), tmp_path / name, {})
    retention.prune(tmp_path, Retention(last=1, best=True))
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000002"]


def test_a_number_is_short_for_the_last():
    fields = {"kind": "train", "name": "a", "model": "m", "batch": 8, "schedule": {"peak": 1, "horizon": "3 steps"}}
    assert TrainStage(**fields).keep == Retention(last=2)
    assert TrainStage(**fields, keep=5).keep == Retention(last=5)
    assert TrainStage(**fields, keep={"every": 1000}).keep == Retention(last=2, every=1000)
    for wrong in (0, True, "5", {"last": 0}, {"every": 0}, {"newest": 1}):
        with pytest.raises(ValueError, match="keep"):
            TrainStage(**fields, keep=wrong)


def test_the_best_needs_an_evaluation_of_what_is_saved():
    fields = {"kind": "train", "name": "a", "model": "m", "batch": 8, "schedule": {"peak": 1, "horizon": "90 steps"}}
    cadence = {"save_every": "80 samples", "keep": {"best": True}}
    pace = Pace(samples=8, tokens=8, flops=8, samples_per_epoch=80)
    require_best_known(TrainStage(**fields, **cadence, evaluate_every="5 steps"), pace)
    with pytest.raises(UserError, match=r"stages.a.keep.best: it saves every 10 steps and evaluates every 4"):
        require_best_known(TrainStage(**fields, **cadence, evaluate_every="4 steps"), pace)
