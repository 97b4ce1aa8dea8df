"""Whoever waits for node 0 goes on when it is done, stops when it stops or is gone, and in no case waits for ever."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import config
from pipeline.errors import UserError
from pipeline.runs import first_node
from pipeline.runs.first_node import Watch, at_work, status_file
from pipeline.runs.run import prepare_alone, run
from pipeline.training.launcher import Nodes
from tests.helpers import cli
from tests.helpers.runs import tiny_run
from tests.helpers.waiting import wait_for


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """Twenty times as fast as it is, or more."""
    for name, seconds in (("BEAT", 0.05), ("SILENCE", 4.0), ("RESTART", 3.0), ("POLL", 0.02)):
        monkeypatch.setattr(first_node, name, seconds)


def stopped_by(error: BaseException, folder: Path) -> None:
    """Node 0 begins and fails."""
    with pytest.raises(type(error)), at_work(folder):
        raise error


def soon(action: Callable[[], object], seconds: float = 0.3) -> None:
    threading.Timer(seconds, action).start()


def never() -> bool:
    return False


def test_it_waits_as_long_as_there_are_signs_of_life(tmp_path):
    """Twice as long as it would wait without; of a success nothing is left."""
    watch, begun = Watch(tmp_path), time.monotonic()
    with at_work(tmp_path):
        watch.wait(lambda: time.monotonic() - begun > 2 * first_node.SILENCE)
    assert not any(tmp_path.iterdir())


REASONS = [
    (UserError("stages.grown: no\nway"), "stages.grown: no way"),
    (KeyError("step"), "KeyError: 'step'"),
    (KeyboardInterrupt(), "it was interrupted"),
    (MemoryError("out of it"), "MemoryError: out of it"),
    (SystemExit(3), "SystemExit: 3"),
]


@pytest.mark.parametrize("error, told", REASONS, ids=[type(error).__name__ for error, _ in REASONS])
def test_it_stops_for_whatever_reason_node_0_stops(tmp_path, error, told):
    watch = Watch(tmp_path)
    stopped_by(error, tmp_path)
    with pytest.raises(UserError) as caught:
        watch.wait(never)
    assert str(caught.value) == f"node 0 stopped: {told}"


def test_what_stopped_an_earlier_launch_stops_nobody(tmp_path, caplog):
    """The clocks of the file system and of the nodes say nothing: the old stop lies in the future here."""
    caplog.set_level("INFO", logger="pipeline")
    stopped_by(UserError("of yesterday"), tmp_path)
    os.utime(status_file(tmp_path), (time.time() + 10_000,) * 2)
    watch, done = Watch(tmp_path), threading.Event()

    def node_0() -> None:
        with at_work(tmp_path):
            time.sleep(0.3)
            done.set()
            time.sleep(0.1)

    soon(node_0)
    watch.wait(done.is_set)
    assert "waiting for node 0, which stopped before: of yesterday" in caplog.messages


def test_the_same_failure_again_is_a_new_one(tmp_path):
    stopped_by(UserError("again"), tmp_path)
    watch = Watch(tmp_path)
    soon(lambda: stopped_by(UserError("again"), tmp_path))
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"^node 0 stopped: again$"):
        watch.wait(never)
    assert time.monotonic() - begun < first_node.RESTART


def test_a_node_0_that_failed_before_this_node_started_is_told(tmp_path):
    stopped_by(UserError("too early"), tmp_path)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"^node 0 stopped: too early$"):
        Watch(tmp_path).wait(never)
    assert time.monotonic() - begun < first_node.SILENCE


def test_a_node_0_that_never_starts_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no sign of life for \d+ minutes: it was killed, or not started; start all"):
        Watch(tmp_path).wait(never)


def test_a_node_0_that_is_killed_is_told(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from pipeline.runs import first_node; first_node.BEAT = 0.05\n"
        "with first_node.at_work(Path(sys.argv[1])): time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], env=cli.environment())
    wait_for(status_file(tmp_path).exists)
    watch = Watch(tmp_path)
    soon(lambda: process.send_signal(signal.SIGKILL), 2 * first_node.SILENCE)
    begun = time.monotonic()
    with pytest.raises(UserError, match="no sign of life"):
        watch.wait(never)
    assert time.monotonic() - begun > 3 * first_node.SILENCE - 0.1
    assert process.wait() == -signal.SIGKILL


def test_a_full_disk_hides_no_error(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.records.run_folder.write_text", full)
    stopped_by(UserError("the disk is full"), tmp_path)


def test_a_bug_on_node_0_of_a_run_is_left_for_the_others(tmp_path, monkeypatch):
    path = tiny_run(tmp_path)

    def bug(*_: object) -> None:
        raise ZeroDivisionError("of node 0")

    monkeypatch.setattr("pipeline.data.prepare", bug)
    with pytest.raises(ZeroDivisionError):
        run(config.load(path), Nodes(2, 0))
    left = first_node.Status.model_validate_json(status_file(tmp_path / "run").read_text())
    assert left.stopped == "ZeroDivisionError: of node 0"
    with pytest.raises(ZeroDivisionError):
        prepare_alone(config.load(path))
    assert first_node.Status.model_validate_json(status_file(tmp_path / "run").read_text()) == left


def test_a_node_that_waits_in_vain_ends_in_one_line(tmp_path, capsys):
    code, said, error = cli.lemon(capsys, "run", tiny_run(tmp_path), "--nodes", 2, "--node-rank", 1)
    assert code == 2 and "waiting for node 0" in said
    assert error.startswith("lemon: node 0 gave no sign of life") and error.count("\n") == 1
