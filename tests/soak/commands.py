"""Commands that a fault will meet: how they are started, what of them is alive, how they ended."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import psutil

from pipeline.cli import main
from pipeline.records.processes import die_with_parent
from tests.helpers.cli import ROOT, environment, environment_kept
from tests.helpers.processes import afresh

FORK = multiprocessing.get_context("fork")
PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h: orphans below this process become its children, so none of them gets out of its sight."""


IMPORTED = ("pipeline.training.loop", "pipeline.expansion.expand", "pipeline.report", "pipeline.runs.preflight")
"""Modules that bring along all that a command imports."""


def adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def import_once() -> None:
    """What forked commands would import each for itself, in seconds."""
    with environment_kept():
        for name in IMPORTED:
            import_module(name)


class Command:
    """A `lemon` command. It ends with this process. said: the file that takes all that it prints. enter: called first
    in the new process, a fork, or before one that imports everything itself is executed."""

    def __init__(
        self,
        arguments: Sequence[str],
        said: Path,
        variables: Mapping[str, str],
        imports: bool = False,
        enter: Callable[[], None] = lambda: None,
    ):
        self.arguments, self.said = list(arguments), said
        self.begun, self.begun_at = time.monotonic(), time.time()
        self._process = (self._imported if imports else self._forked)(variables, enter)
        self.pid: int = self._process.pid

    def _imported(self, variables: Mapping[str, str], enter: Callable[[], None]) -> subprocess.Popen[bytes]:
        """As users start it: its imports, and those of its workers, take some seconds each."""
        with self.said.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "pipeline", *self.arguments],
                stdout=file,
                stderr=file,
                cwd=ROOT,
                env=environment(**variables),
                preexec_fn=enter,
            )

    def _forked(self, variables: Mapping[str, str], enter: Callable[[], None]) -> FORK.Process:
        parent = os.getpid()

        def work() -> None:
            die_with_parent(parent)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            handle = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for number in (1, 2):
                os.dup2(handle, number)
            afresh()
            enter()
            with environment_kept():
                os.environ.update(variables)
                sys.exit(main(self.arguments))

        process = FORK.Process(target=work)
        process.start()
        return process

    @property
    def code(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it is alive."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode

    def wait(self) -> None:
        """To be called once it has a code."""
        self._process.wait() if isinstance(self._process, subprocess.Popen) else self._process.join()

    @property
    def text(self) -> str:
        return self.said.read_text(encoding="utf-8", errors="replace") if self.said.exists() else ""


def below(pid: int | None = None) -> list[psutil.Process]:
    """What is alive below a process (default: this one), orphans that it has adopted included."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def workers(command: Command) -> list[int]:
    """The processes that train: children of the command with a session of their own; other children where there are
    none."""
    with suppress(psutil.NoSuchProcess):
        children = [child.pid for child in psutil.Process(command.pid).children()]
        return [pid for pid in children if _leads_a_session(pid)] or children
    return []


def _leads_a_session(pid: int) -> bool:
    with suppress(ProcessLookupError):
        return os.getsid(pid) == pid
    return False


def send(pid: int, number: int) -> None:
    """A signal, unless the process has ended meanwhile."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_all() -> None:
    """Everything below this process."""
    for process in below():
        send(process.pid, signal.SIGKILL)


def reap(spare: Sequence[int]) -> None:
    """Let go of adopted orphans that have ended. spare: children that somebody else waits for."""
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if process.pid not in spare and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)
