"""Nothing outlives a launcher that is killed while its workers start, which takes them seconds of imports."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.records.processes import PARENT
from tests.helpers.cli import environment
from tests.helpers.processes import Child, alive
from tests.helpers.runs import copied
from tests.helpers.waiting import patience, wait_for


def workers_started_by(launcher: int) -> list[int]:
    """Process ids, by the environment that a launcher gives its workers, and they their own children."""
    mark, found = f"{PARENT}={launcher}".encode(), []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in place.read_bytes().split(b"\0") and alive(int(place.parent.name)):
                found.append(int(place.parent.name))
        except OSError:
            continue  # it ended while we looked
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_no_worker_outlives_a_launcher_that_is_killed_at_a_random_moment(finished, tmp_path, monkeypatch, seed):
    """Of its workers' first 3 seconds: they are processes of their own, not forks of this one."""
    path, moment = copied(finished, tmp_path), random.Random(seed).uniform(0, 3)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    launcher = Child(lambda: main(["train", str(path), "--stage", "small"]), tmp_path / "said")
    try:
        workers = wait_for(lambda: workers_started_by(launcher.pid))
        time.sleep(moment)
        workers += workers_started_by(launcher.pid)
    finally:
        os.kill(launcher.pid, signal.SIGKILL)
    wait_for(lambda: not any(map(alive, workers)) and not workers_started_by(launcher.pid), patience(1))
    assert launcher.end().code == -signal.SIGKILL
