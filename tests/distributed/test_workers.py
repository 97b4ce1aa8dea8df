"""The pool of workers that other tests rest on: jobs one after the other, and no harm from one that fails."""

import os
import signal
import time

import pytest

from tests.helpers.workers import WorkerError, WorkerPools

JOBS = "tests.distributed.test_workers"


def identity(job: dict) -> list:
    return [os.getpid(), os.environ["RANK"], job["word"]]


def fail_on_rank_1(_: dict) -> None:
    """Rank 0 waits, as in a collective that rank 1 never enters."""
    if os.environ["RANK"] == "1":
        raise ValueError("rank 1 has a reason")
    time.sleep(600)


def die(_: dict) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_workers_serve_again_and_again_and_a_failure_starts_new_ones():
    with WorkerPools() as pools:
        first, second = (pools.run(f"{JOBS}:identity", {"word": word}, world=2) for word in ("one", "two"))
        assert first[1:] == ["0", "one"] and second == [first[0], "0", "two"]
        with pytest.raises(WorkerError, match=r"(?s)rank 1 of 2.*rank 1 has a reason"):
            pools.run(f"{JOBS}:fail_on_rank_1", {}, world=2)
        again = pools.run(f"{JOBS}:identity", {"word": "three"}, world=2)
        assert again[1:] == ["0", "three"] and again[0] != first[0] and not alive(first[0])
        with pytest.raises(WorkerError, match=r"died|hung up"):
            pools.run(f"{JOBS}:die", {}, world=2)
    assert not alive(again[0])


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
