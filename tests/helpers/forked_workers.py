"""Workers of a run as forks of this process, which has imported torch, DeepSpeed and transformers already: importing
them takes ten seconds of a core for each worker, a training stage of the tests one.

The agent, the workers' environment, their process groups and engines are the real ones. The test of the launch script
and the quick starts begin their workers as users do.
"""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import NoReturn
from unittest import mock

import torch
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from pipeline.cli import main
from tests.helpers.processes import FORK, afresh

LATE = ("deepspeed.runtime.zero.muon.muon_optimizer",)
"""Modules that each worker would import for itself, with torch's compiler, in two seconds of a core."""


class ForkedWorker:
    """A fork that looks to torch's agent like the `subprocess.Popen` of `python -m pipeline ARGUMENTS`."""

    def __init__(self, arguments: Sequence[str], environment: dict[str, str]):
        self._process = FORK.Process(target=_work, args=(arguments, environment))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("worker", timeout)
        return self._process.exitcode


def _work(arguments: Sequence[str], environment: dict[str, str]) -> NoReturn:
    os.setsid()  # the agent signals the process group
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # the agent's own handlers are in the fork
    os.environ.clear()
    os.environ.update(environment)
    afresh()
    torch.set_num_threads = lambda count: None  # a second thread would wait for those of the parent
    os._exit(main(list(arguments)))


@contextmanager
def workers_forked() -> Iterator[None]:
    """Runs that begin inside fork their workers, which measure the CPU's peak in a tenth of the time."""
    for name in ("pipeline.training.loop", *LATE):
        import_module(name)
    hardware = import_module("pipeline.training.hardware")

    def begin(_: SubprocessHandler, command: tuple[str, ...], environment: dict[str, str]) -> ForkedWorker:
        interpreter, option, module, *arguments = command
        assert (option, module) == ("-m", "pipeline"), interpreter
        return ForkedWorker(arguments, environment)

    quick = mock.patch.multiple(hardware, SECONDS=0.1, FEWEST=2)
    with mock.patch.object(SubprocessHandler, "_popen", begin), quick:
        yield
