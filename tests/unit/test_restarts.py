"""A training is started again after a fault, as often as the config says; what is anybody's mistake ends it at once."""

import shutil
from pathlib import Path

import pytest

from pipeline.checkpoints import manifest
from pipeline.errors import RESUME, FaultError, Preempted, UserError
from pipeline.records.run_folder import StageFolder
from pipeline.runs import restarts
from pipeline.training import preemption

KILLED = FaultError(f"worker 1 died{RESUME}")
Outcome = BaseException | tuple[int, BaseException] | None
"""Of an attempt: an error, a checkpoint of that step and an error, or success."""


class Attempts:
    def __init__(self, folder: Path, *outcomes: Outcome):
        self.folder, self.outcomes, self.made = StageFolder(folder / "small"), outcomes, 0

    def one(self) -> None:
        outcome, self.made = self.outcomes[self.made], self.made + 1
        if isinstance(outcome, tuple):
            saved(self.folder.checkpoints / f"step-{outcome[0]:07d}")
            outcome = outcome[1]
        if outcome:
            raise outcome

    def until_done(self, limit: int, decides: bool = True) -> None:
        restarts.until_done(self.one, self.folder, limit, decides=decides)


def saved(checkpoint: Path) -> None:
    checkpoint.mkdir(parents=True)
    (checkpoint / manifest.NAME).write_text("{}")


def test_without_restarts_a_fault_ends_it(tmp_path):
    attempts = Attempts(tmp_path, KILLED, None)
    with pytest.raises(FaultError, match=r"^worker 1 died; run the command again to resume$"):
        attempts.until_done(0)
    assert attempts.made == 1


def test_it_is_started_again_and_says_why(tmp_path, caplog):
    attempts = Attempts(tmp_path, KILLED, KILLED, None)
    attempts.until_done(2)
    assert attempts.made == 3 and caplog.messages == [
        "small: worker 1 died; starting again from step 0 (restarts left: 1)",
        "small: worker 1 died; starting again from step 0 (restarts left: 0)",
    ]


def test_one_fault_too_many_ends_it(tmp_path):
    attempts = Attempts(tmp_path, KILLED, KILLED, None)
    with pytest.raises(FaultError):
        attempts.until_done(1)
    assert attempts.made == 2


def test_another_node_leaves_that_to_node_0(tmp_path):
    attempts = Attempts(tmp_path, KILLED, KILLED, None)
    attempts.until_done(1, decides=False)
    assert attempts.made == 3


def test_a_newer_checkpoint_starts_the_count_anew(tmp_path, caplog):
    attempts = Attempts(tmp_path, KILLED, (10, KILLED), (20, KILLED), None)
    attempts.until_done(1)
    assert attempts.made == 4
    assert caplog.messages[-1] == "small: worker 1 died; starting again from step 20 (restarts left: 0)"


@pytest.mark.parametrize("ending", [UserError("batch: wrong"), Preempted("stopped"), KeyboardInterrupt()])
def test_what_is_no_fault_ends_it_at_once(tmp_path, ending):
    attempts = Attempts(tmp_path, ending, None)
    with pytest.raises(type(ending)):
        attempts.until_done(3)
    assert attempts.made == 1


def test_a_run_that_was_asked_to_stop_is_not_started_again(tmp_path, monkeypatch):
    """A worker was killed, or hung, before it could hear the request."""
    monkeypatch.setattr(preemption.FORWARDING, "asked", 1.0)
    attempts = Attempts(tmp_path, KILLED, None)
    with pytest.raises(Preempted, match="stopped on request"):
        attempts.until_done(3)
    assert attempts.made == 1


def test_an_older_checkpoint_does_not_start_the_count_anew(tmp_path):
    """The newest one was set aside, as damaged."""
    attempts = Attempts(tmp_path, (20, KILLED), KILLED, None)
    real, attempts.one = attempts.one, lambda: (attempts.made == 1 and shutil.rmtree(newest), real())
    newest = attempts.folder.checkpoints / "step-0000020"
    saved(attempts.folder.checkpoints / "step-0000010")
    with pytest.raises(FaultError):
        attempts.until_done(1)
    assert attempts.made == 2
