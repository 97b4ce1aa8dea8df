"""A helper process does not outlive what started it: it would hold the lock of a run for ever."""

import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

import pytest

from pipeline.records import run_folder
from pipeline.records.processes import Helpers, be_a_helper, die_with_parent
from pipeline.training import device_precisions
from tests.helpers.processes import FORK, alive, unlocked, workers_of
from tests.helpers.waiting import wait_for


def never_answer() -> None:
    time.sleep(600)


@pytest.fixture
def asking(tmp_path, monkeypatch):
    """A process that has locked a run and asks a child for the precisions, which never answers."""
    monkeypatch.setattr(device_precisions, "supported_precisions", never_answer)

    def work() -> None:
        with run_folder.exclusive(tmp_path, 0):
            device_precisions.precisions_of_workers()

    process = FORK.Process(target=work)
    process.start()
    yield process
    process.kill()
    process.join()


def test_who_asks_for_the_precisions_dies_with_the_run(asking, tmp_path):
    (child,) = wait_for(lambda: workers_of(asking.pid))
    assert not unlocked(tmp_path)
    time.sleep(0.5)  # the child has asked the kernel by then
    os.kill(asking.pid, signal.SIGKILL)
    asking.join()
    wait_for(lambda: not alive(child) and unlocked(tmp_path), 20)


def test_a_child_whose_parent_is_gone_already_ends_at_once():
    process = FORK.Process(target=die_with_parent, args=(1,))
    process.start()
    process.join(20)
    assert process.exitcode == 1


@pytest.mark.parametrize("number", range(3))
def test_a_pool_ends_whichever_helper_is_killed(number):
    """Two of three helpers have nothing to do: one of them has the lock of the queue, for which the other waits."""

    def work() -> None:
        with (
            suppress(BrokenProcessPool),
            ProcessPoolExecutor(3, Helpers(), initializer=be_a_helper, initargs=(os.getpid(),)) as pool,
        ):
            found = [pool.submit(os.getpid), pool.submit(os.getpid), pool.submit(never_answer)]
            found[2].result()
        os._exit(7)

    process = FORK.Process(target=work)
    process.start()
    helpers = wait_for(lambda: found if len(found := sorted(workers_of(process.pid))) == 3 else None)
    time.sleep(0.5)  # by then all of them ignore SIGTERM, and two wait for a task
    os.kill(helpers[number], signal.SIGKILL)
    process.join(20)
    code = process.exitcode
    process.kill()
    assert code == 7
    wait_for(lambda: not any(map(alive, helpers)))
