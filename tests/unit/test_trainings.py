"""A training is started again after a fault, as often as the config says; what is anybody's mistake ends it at once."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import config
from pipeline.checkpoints import manifest
from pipeline.errors import Fault, Preempted, UserError
from pipeline.runs.trainings import Trainings
from pipeline.training.launcher import Nodes, Seat
from tests.helpers.runs import tiny_run


@pytest.fixture
def train(tmp_path) -> Callable[..., list[Seat]]:
    """Runs the first stage by attempts that do what is asked in turn: raise an error, or save a checkpoint and raise;
    the seats of those that were made."""

    def run(restarts: int, *outcomes: BaseException | tuple[int, BaseException] | None) -> list[Seat]:
        loaded = config.load(tiny_run(tmp_path, restarts=restarts))
        seats: list[Seat] = []

        def attempt(seat: Seat) -> None:
            outcome = outcomes[len(seats)]
            seats.append(seat)
            if isinstance(outcome, tuple):
                saved(loaded.path / loaded.stages[0].name / "checkpoints" / f"step-{outcome[0]:07d}")
                outcome = outcome[1]
            if outcome:
                raise outcome

        run.seats = seats
        Trainings(loaded, Nodes(), lambda action, done: action()).train(loaded.stages[0], lambda count: True, attempt)
        return seats

    return run


def saved(checkpoint: Path) -> None:
    checkpoint.mkdir(parents=True)
    (checkpoint / manifest.NAME).write_text("{}")


KILLED = Fault("worker 1 died")


def test_without_restarts_a_fault_ends_it(train):
    with pytest.raises(Fault, match=r"^worker 1 died; run the command again to resume$"):
        train(0, KILLED)


def test_it_is_started_again_and_says_why(train, caplog):
    assert len(train(2, KILLED, KILLED, None)) == 3
    assert caplog.messages == [
        "small: worker 1 died; starting again from step 0 (restarts left: 1)",
        "small: worker 1 died; starting again from step 0 (restarts left: 0)",
    ]


def test_one_fault_too_many_ends_it(train):
    with pytest.raises(Fault):
        train(1, KILLED, KILLED, None)
    assert len(train.seats) == 2


def test_a_newer_checkpoint_starts_the_count_anew(train, caplog):
    assert len(train(1, KILLED, (10, KILLED), (20, KILLED), None)) == 4
    assert "small: worker 1 died; starting again from step 20 (restarts left: 0)" in caplog.messages


@pytest.mark.parametrize("ending", [UserError("batch: wrong"), Preempted("stopped"), KeyboardInterrupt()])
def test_what_is_no_fault_ends_it_at_once(train, ending):
    with pytest.raises(type(ending)):
        train(3, ending, None)
    assert len(train.seats) == 1
