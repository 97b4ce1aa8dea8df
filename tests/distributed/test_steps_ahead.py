"""Runs whose host reads the values of a step when the next one was begun, as it does on a GPU: the same numbers."""

from collections.abc import Iterator
from unittest import mock

import pytest

from pipeline.training.step_in_flight import AHEAD
from tests.helpers import cli
from tests.helpers.cli import lemon_here
from tests.helpers.poisoned_runs import command, events, poisoned
from tests.helpers.runs import STEPS, copied, ledger, losses, steps_in_all


@pytest.fixture(autouse=True)
def one_step_ahead() -> Iterator[None]:
    """Workers are forks, which take this over."""
    with mock.patch.dict(AHEAD, {"cpu": 1}):
        yield


def test_records_and_ledger_are_those_of_a_host_that_waits(finished, tmp_path):
    path, run = copied(finished, tmp_path), tmp_path / "run"
    lemon_here("train", path, "--stage", "small")
    assert losses(run, "small") == losses(finished / "run", "small")
    assert ledger(run, "small") == ledger(finished / "run", "small")


def test_what_is_asked_to_stop_does_so_one_step_later(finished, tmp_path, capfd):
    path, run = copied(finished, tmp_path), tmp_path / "run"
    assert cli.lemon(capfd, "train", path, "--stage", "small", "max_time=0.01 seconds")[0] == 85
    assert [checkpoint.name for checkpoint in (run / "small" / "checkpoints").iterdir()] == ["step-0000002"]
    lemon_here("train", path, "--stage", "small")
    assert losses(run, "small") == losses(finished / "run", "small") and steps_in_all(run, "small") == STEPS


def test_a_nan_is_told_with_its_step_and_what_was_done_behind_it_is_counted(tmp_path, capfd):
    train, run = command(tmp_path / "run-of-nan")
    with poisoned(11):
        code, _, said = cli.lemon(capfd, *train)
    assert code == 2 and "loss nan" in said and "at step 12;" in said
    assert events(run) == [(12, "nan", "abort", None, None)]
    lemon_here(*train)
    assert steps_in_all(run, "small") == STEPS + 2 + 1, "two behind the checkpoint, one begun before the NaN was read"


@pytest.mark.slow
def test_a_rewind_goes_on_with_the_same_samples(tmp_path):
    rewind = "stages.small.stability.not_finite=rewind"
    train, run = command(tmp_path / "ahead", rewind)
    with poisoned(2, 14):
        lemon_here(*train)
    plain, other = command(tmp_path / "waiting", rewind)
    with poisoned(2, 14), mock.patch.dict(AHEAD, {"cpu": 0}):
        lemon_here(*plain)
    assert events(run) == events(other) and losses(run, "small") == losses(other, "small")
    assert steps_in_all(run, "small") == steps_in_all(other, "small") + 2
