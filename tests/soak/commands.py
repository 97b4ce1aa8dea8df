"""Commands that a fault will meet: how they are started, what of them is alive, how they ended."""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import NoReturn

import psutil

from pipeline.cli import main
from pipeline.records.processes import die_with_parent
from tests.helpers.cli import ROOT, environment, environment_kept
from tests.helpers.processes import FORK, afresh

PR_SET_CHILD_SUBREAPER = 36
"""linux/prctl.h: orphans below this process become its children, so none of them gets out of its sight."""


IMPORTED = (
    "pipeline.expansion.expand",
    "pipeline.report",
    "pipeline.runs.run",
    "pipeline.runs.preflight",
    "sklearn.datasets",
)
"""Modules that bring along what a command imports, besides what training needs."""


def adopt_orphans() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def import_once() -> None:
    """What forked commands would import each for itself, in seconds."""
    with environment_kept():
        for name in IMPORTED:
            import_module(name)


class Process:
    """A `lemon` command. It ends with this process. said: the file that takes all that it prints. imports: it imports
    everything itself, as users start it. enter: called first in the new process."""

    def __init__(
        self,
        arguments: Sequence[str],
        said: Path,
        variables: Mapping[str, str],
        imports: bool = False,
        enter: Callable[[], None] = lambda: None,
    ):
        self.arguments, self.said, self._variables, self._enter = list(arguments), said, variables, enter
        self._process = self._imported() if imports else self._forked()
        self.pid: int = self._process.pid

    def _imported(self) -> subprocess.Popen[bytes]:
        command, parent = [sys.executable, "-m", "pipeline", *self.arguments], os.getpid()

        def enter() -> None:
            die_with_parent(parent)
            self._enter()

        with self.said.open("ab") as file:
            variables = environment(**self._variables)
            return subprocess.Popen(command, stdout=file, stderr=file, cwd=ROOT, env=variables, preexec_fn=enter)

    def _forked(self) -> ForkProcess:
        process = FORK.Process(target=self._work, args=(os.getpid(),))
        process.start()
        return process

    def _work(self, parent: int) -> NoReturn:
        die_with_parent(parent)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        handle = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in (1, 2):
            os.dup2(handle, number)
        afresh()
        self._enter()
        with environment_kept():
            os.environ.update(self._variables)
            sys.exit(main(self.arguments))

    @property
    def code(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it is alive."""
        return self._process.poll() if isinstance(self._process, subprocess.Popen) else self._process.exitcode


class Command:
    """What is started at once and ends together: a process, or one on each host."""

    def __init__(self, arguments: Sequence[str], processes: Sequence[Process], begun: float, begun_at: float):
        """begun, begun_at: by the monotonic clock, and in seconds since the epoch."""
        self.arguments, self.processes, self.begun, self.begun_at = arguments, processes, begun, begun_at

    @property
    def code(self) -> int | None:
        """The exit code, of several the first that is not 0; None while one is alive."""
        codes = [process.code for process in self.processes]
        return None if None in codes else next((code for code in codes if code), 0)

    @property
    def text(self) -> str:
        """All that was said."""
        files = [process.said for process in self.processes]
        return "".join(file.read_text(encoding="utf-8", errors="replace") for file in files if file.exists())


def below() -> list[psutil.Process]:
    """What is alive below this process, orphans that it has adopted included."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def workers(command: Command) -> list[int]:
    """The processes that train: children of the command with a session of their own; other children where there are
    none."""
    children: list[int] = []
    for process in command.processes:
        with suppress(psutil.NoSuchProcess):
            children += [child.pid for child in psutil.Process(process.pid).children()]
    return [pid for pid in children if _leads_a_session(pid)] or children


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


def reap() -> None:
    """Let go of adopted orphans that have ended. To be called when every command has its exit code."""
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess, ChildProcessError):
            if process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)
