"""Training that stands still: who has not arrived is named, the others leave their stacks, nothing is waited for."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import pytest

from pipeline.errors import FAULT
from pipeline.training.loop import Loop
from tests.helpers.cli import start_lemon
from tests.helpers.ports import free_port
from tests.helpers.processes import alive, workers_of
from tests.helpers.runs import copied, records
from tests.helpers.waiting import patience, wait_for

LONG = "stages.small.schedule.horizon=50000 steps"
STANDSTILL = 6
"""Seconds that a step may take here."""
ENDS = STANDSTILL + 8
"""Seconds until the command has ended, on a machine with other work: stacks, messages, and the grace of what is
stopped."""


SILENT_NODE = (
    r"lemon: no rank of node 1 \(HOST\) has answered for \d+ s in step \d+: the node, or the link to node 0 \(HOST\), "
    "is lost; the stacks of"
)
SILENT_RANK_0 = (
    r"lemon: rank 0 of node 0 \(HOST\) has given no sign of life for \d+ s in step \d+: stopped, or lost, or the link "
    r"to it from node 1 \(HOST\); the stacks of"
)


class Run:
    """A stage that trains; its launchers, and all their workers by rank."""

    def __init__(self, finished: Path, folder: Path, nodes: int = 1):
        self.folder, path = folder / "run", copied(finished, folder)
        hang = (f"hang.step={STANDSTILL} seconds", "hang.pause=30 seconds")
        more = ("--nodes", nodes, "--master-port", free_port(), "processes=1") if nodes > 1 else ()
        command = ("train", path, "--stage", "small", LONG, "stages.small.save_every=5000 steps", *hang, *more)
        rank = ("--node-rank",) if nodes > 1 else ()
        self.launchers = [
            start_lemon(folder / f"said-{node}", *command, *rank, *([node] if rank else [])) for node in range(nodes)
        ]
        wait_for(lambda: max((each["step"] for each in records(self.folder, "small")), default=0) >= 4)
        self.ranks = [pid for launcher in self.launchers for pid in sorted(workers_of(launcher.pid))]

    def ended(self, node: int = 0) -> tuple[str, float]:
        """The last line that a launcher says, and how many seconds it took to end. Nothing of it is left."""
        begun = time.monotonic()
        ended = self.launchers[node].end(60)
        assert ended.code == FAULT and "Traceback" not in ended.said, ended
        return ended.said.splitlines()[-1], time.monotonic() - begun

    def stacks(self) -> dict[str, str]:
        return {path.name: path.read_text() for path in (self.folder / "small" / "hangs").glob("step-*/rank-*.txt")}


@pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_rank_that_is_stopped(finished, tmp_path, victim):
    run = Run(finished, tmp_path)
    os.kill(run.ranks[victim], signal.SIGSTOP)
    said, seconds = run.ended()
    assert said.startswith(f"lemon: rank {victim} has given no sign of life for "), said
    assert f"stopped, or lost; the stacks of those that answer are in {run.folder}/small/hangs/step-0" in said
    assert STANDSTILL / 2 < seconds < patience(ENDS)
    (stack,) = run.stacks().values()
    assert f"rank {1 - victim} of 2, step " in stack and "in step" in stack and "loop.py" in stack
    assert not any(map(alive, run.ranks))


@pytest.mark.slow
def test_a_rank_that_does_not_come(finished, tmp_path, monkeypatch):
    """To the collective that the others wait in; it is as alive as they are."""
    late, step = tmp_path / "late", Loop._begin_step

    def step_of_rank_1_waits(loop: Loop, *arguments) -> None:
        if loop.world.rank == 1 and late.exists():
            time.sleep(600)
        step(loop, *arguments)

    monkeypatch.setattr(Loop, "_begin_step", step_of_rank_1_waits)
    run = Run(finished, tmp_path)
    late.touch()
    said, seconds = run.ended()
    assert said.startswith("lemon: rank 1 has not come to what the others wait in for "), said
    assert STANDSTILL / 2 < seconds < patience(ENDS)
    stacks = run.stacks()
    assert len(stacks) == 2 and "step_of_rank_1_waits" in stacks["rank-1.txt"] and "all_reduce" in stacks["rank-0.txt"]


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_others_at_once(finished, tmp_path):
    run = Run(finished, tmp_path)
    os.kill(run.ranks[1], signal.SIGKILL)
    wait_for(lambda: not any(map(alive, run.ranks)), patience(3))
    said, _ = run.ended()
    assert (
        said
        == "lemon: worker 1 died (SIGKILL: out of memory, or stopped from outside); run the command again to resume"
    )


@pytest.mark.slow
@pytest.mark.parametrize("lost, said_of_it", [(1, SILENT_NODE), (0, SILENT_RANK_0)], ids=["node 1", "node 0"])
def test_a_node_that_is_silent_as_behind_a_cut_link(finished, tmp_path, monkeypatch, lost, said_of_it):
    """Its command and its worker are stopped, so that all connections stay open and nothing comes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # OpenMP's threads are not in a fork
    run = Run(finished, tmp_path, nodes=2)
    stopped = [run.launchers[lost].pid, run.ranks[lost]]
    try:
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        said, seconds = run.ended(1 - lost)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
    assert re.match(said_of_it.replace("HOST", socket.gethostname()), said), said
    assert STANDSTILL / 2 < seconds < patience(ENDS + 6)  # for the goodbye that never comes
