"""Processes that a test starts: a child that has imported everything already, the workers of a run, how they are
killed."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.records import run_folder

FORK = multiprocessing.get_context("fork")


def workers_of(parent: int) -> list[int]:
    """Processes whose parent is `parent`, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended while we looked
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def unlocked(folder: Path) -> bool:
    """Whether nobody works on a run."""
    try:
        with run_folder.exclusive(folder, 0):
            return True
    except UserError:
        return False


@dataclass(frozen=True)
class Ended:
    """How a child process ended: its exit code, or minus the signal that killed it; what it wrote to stderr."""

    code: int
    said: str


class Child:
    """`work`, which returns an exit code, in a fork of this process. said: the file that takes its stderr."""

    def __init__(self, work: Callable[[], int], said: Path):
        self.said = said
        self._process = FORK.Process(target=_child, args=(work, said))
        self._process.start()
        self.pid = self._process.pid

    def end(self, seconds: float = 180) -> Ended:
        """How it ends."""
        self._process.join(seconds)
        self._process.kill()  # pytest would wait for it at its own end
        assert self._process.exitcode is not None, "the child does not end"
        return Ended(self._process.exitcode, self.said.read_text())


def in_a_child(work: Callable[[], int], said: Path) -> Ended:
    """How `work`, which returns an exit code, ends in a fork of this process. said: the file that takes its stderr."""
    return Child(work, said).end()


def _child(work: Callable[[], int], said: Path) -> None:
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    afresh()
    sys.exit(work())


def afresh() -> None:
    """To be called first in a fork of pytest: it writes where its file descriptors lead, not into pytest's memory, and
    computes in one thread, for those of its parent are not in the fork."""
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    torch.set_num_threads(1)
