"""Runs that are asked to stop: they save behind the step that they are in, end with exit code 85, and lose nothing."""

import os
import signal
import time

import pytest

from pipeline.cli import main
from pipeline.records.run_folder import StageFolder
from pipeline.training.loop import Loop
from tests.helpers import cli
from tests.helpers.cli import environment_kept, lemon_here
from tests.helpers.processes import FORK, unlocked, workers_of
from tests.helpers.rotation import rotated
from tests.helpers.runs import STEPS, copied, records, steps_in_all, tiny_run
from tests.helpers.waiting import wait_for

SLOWLY = "stages.small.log_every=1"


def last_step(run, stage: str = "small") -> int:
    return max((record["step"] for record in records(run, stage)), default=0)


def saved(run, stage: str = "small") -> int:
    return max(int(path.name.rpartition("-")[2]) for path in (run / stage / "checkpoints").glob("step-*"))


def evaluations(run, stage: str = "small") -> list[tuple[int, float]]:
    return [(record["step"], record["eval_loss"]) for record in records(run, stage) if "eval_loss" in record]


def stopped(command: list[str], run, number: int, whom) -> int | None:
    """The exit code of a command that gets a signal when its first steps are recorded. whom: the processes that get it,
    of the command's process id."""
    with environment_kept():
        process = FORK.Process(target=lambda: os._exit(main(command)))
        process.start()
        try:
            wait_for(lambda: last_step(run) >= 2 or not process.is_alive())
            for pid in whom(process.pid):
                os.kill(pid, number)
            process.join(120)
        finally:
            process.kill()
        wait_for(lambda: unlocked(run), 60)
        return process.exitcode


WHOM = {
    "launcher": lambda launcher: [launcher],
    "one worker": lambda launcher: workers_of(launcher)[-1:],
    "every process": lambda launcher: [launcher, *workers_of(launcher)],
}
CASES = [
    (signal.SIGTERM, "launcher"),
    (signal.SIGUSR1, "launcher"),
    (signal.SIGUSR1, "one worker"),
    (signal.SIGTERM, "every process"),
]


@rotated(one_in=4, of=("number", "whom"))
@pytest.mark.parametrize("number, whom", CASES)
def test_what_is_stopped_goes_on_and_no_step_is_done_twice(finished, tmp_path, number, whom):
    for attempt in "123":  # on a busy machine a run of half a second may end before it is asked to
        (tmp_path / attempt).mkdir()
        path, run = copied(finished, tmp_path / attempt), tmp_path / attempt / "run"
        command = ["train", str(path), "--stage", "small", SLOWLY]
        if (code := stopped(command, run, number, WHOM[whom])) != 0 and saved(run) < STEPS:
            break
    assert code == 85
    assert 2 <= saved(run) == last_step(run) < STEPS
    lemon_here(*command)
    assert steps_in_all(run, "small") == STEPS
    assert evaluations(run) == evaluations(finished / "run")


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["launcher", "one worker"])
def test_a_request_in_the_last_step_of_a_stage_keeps_the_next_from_beginning(finished, tmp_path, monkeypatch, whom):
    """No worker looks for it any more."""
    path, run = copied(finished, tmp_path), tmp_path / "run"
    publish = Loop._publish

    def asked(loop: Loop, step: int) -> None:
        publish(loop, step)
        if step == STEPS and loop.world.rank == 1:
            os.kill(os.getpid() if whom == "one worker" else os.getppid(), signal.SIGTERM)
            time.sleep(0.5)

    monkeypatch.setattr(Loop, "_publish", asked)
    with environment_kept():
        process = FORK.Process(target=lambda: os._exit(main(["run", str(path)])))
        process.start()
        process.join(120)
    assert process.exitcode == 85
    assert saved(run) == STEPS and StageFolder(run / "small").finished and not (run / "grown").exists()


@pytest.mark.slow
def test_the_time_that_a_run_is_given(finished, tmp_path, capfd):
    path, run = copied(finished, tmp_path), tmp_path / "run"
    code, _, said = cli.lemon(capfd, "run", path, "max_time=0.01 seconds")
    assert code == 85 and said == "lemon: stopped by max_time before stage 'small'; run the command again to go on\n"
    code, _, said = cli.lemon(capfd, "train", path, "--stage", "small", "max_time=0.01 seconds")
    assert code == 85 and "stopped" in said and saved(run) == 1
    lemon_here("train", path, "--stage", "small")
    assert steps_in_all(run, "small") == STEPS and evaluations(run) == evaluations(finished / "run")


@pytest.mark.slow
def test_a_signal_before_anything_trains(finished, tmp_path):
    """While the data are prepared, or the workers start."""
    path, run = tiny_run(tmp_path), tmp_path / "run"
    with environment_kept():
        process = FORK.Process(target=lambda: os._exit(main(["train", str(path), "--stage", "small"])))
        process.start()
        wait_for(lambda: (run / "data").exists() or not process.is_alive())
        os.kill(process.pid, signal.SIGTERM)
        process.join(60)
    assert process.exitcode == 85
    lemon_here("train", path, "--stage", "small")
    assert steps_in_all(run, "small") == STEPS and evaluations(run) == evaluations(finished / "run")
