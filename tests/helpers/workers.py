"""Processes that train together: a pool for each world size, kept to the session's end.

They are forks of this process, which has imported DeepSpeed already, in the environment that torchrun makes.
"""

import json
import select
import socket
import tempfile
import time
from contextlib import suppress
from importlib import import_module
from multiprocessing.context import ForkProcess as Process
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.helpers.cli import environment, environment_kept
from tests.helpers.ports import free_port
from tests.helpers.processes import FORK
from tests.helpers.scripts import worker

START_SECONDS, JOB_SECONDS, END_SECONDS, GRACE_SECONDS = 120.0, 300.0, 20.0, 3.0
"""How long workers may take to be there, to do one job, and to end: in peace, and after one of them has failed."""


class WorkerError(AssertionError):
    """A worker died, did not answer in time, or raised; holds its traceback or the end of the workers' output."""


class Connection:
    """Lines of JSON to and from one worker."""

    def __init__(self, link: socket.socket):
        link.settimeout(JOB_SECONDS)
        self.link, self.lines = link, link.makefile("rw", encoding="utf-8")

    def fileno(self) -> int:
        """For `select`."""
        return self.link.fileno()

    def send(self, message: dict) -> None:
        print(json.dumps(message), file=self.lines, flush=True)

    def receive(self) -> dict | None:
        """None when the worker is gone."""
        line = self.lines.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        with suppress(OSError):  # the other side was quicker
            self.link.shutdown(socket.SHUT_RDWR)  # pools that were forked later hold the connection too
            self.lines.close()
        self.link.close()


class WorkerPool:
    """`world` processes of one process group that do jobs one after the other.

    A job that fails ends the pool, for the ranks no longer stand at the same collective: the next pool starts afresh.
    """

    def __init__(self, world: int):
        self.world = world
        self.folder = tempfile.TemporaryDirectory(prefix="workers-")  # a short path: a socket's has at most 107 bytes
        self.output = Path(self.folder.name) / "output"
        self.processes: list[Process] = []
        self.connections: dict[int, Connection] = {}
        try:
            self._start()
        except BaseException:
            self.close(GRACE_SECONDS)
            raise

    @property
    def usable(self) -> bool:
        return bool(self.processes) and all(process.is_alive() for process in self.processes)

    def run(self, function: str, job: dict) -> Any:
        """What `function` ("module:name") of rank 0 returns for the job; every rank runs it. Raises WorkerError."""
        try:
            for connection in self.connections.values():
                connection.send({"function": function, "job": job})
            return self._answers()[0]
        except OSError as error:
            raise self._failure(f"the workers hung up ({error})") from error
        except BaseException:
            self.close(GRACE_SECONDS)
            raise

    def close(self, seconds: float = END_SECONDS) -> None:
        """End the workers, which have some seconds for it, and remove what they had."""
        self._end(seconds)
        self.folder.cleanup()

    def _end(self, seconds: float) -> None:
        """Hang up, which ends the workers; whoever does not end is killed."""
        for connection in self.connections.values():
            connection.close()
        self.connections = {}
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.join()
        self.processes = []

    def _start(self) -> None:
        address = str(Path(self.folder.name) / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen(self.world)
            listener.settimeout(0.2)
            self.processes = [self._worker(rank, address, port) for port in [free_port()] for rank in range(self.world)]
            while len(self.connections) < self.world:
                connection = self._accepted(listener)
                hello = connection.receive()
                if hello is None:
                    raise self._failure("a worker died at once")
                self.connections[hello["rank"]] = connection

    def _worker(self, rank: int, address: str, port: int) -> Process:
        launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.world, "LOCAL_WORLD_SIZE": self.world}
        launched |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        variables = environment(**{name: str(value) for name, value in launched.items()})
        process = FORK.Process(target=worker.begin, args=(address, variables, self.output))
        process.start()
        return process

    def _accepted(self, listener: socket.socket) -> Connection:
        """The next worker that calls."""
        deadline = time.monotonic() + START_SECONDS
        while self.usable and time.monotonic() < deadline:
            try:
                return Connection(listener.accept()[0])
            except TimeoutError:
                continue
        raise self._failure("a worker did not start")

    def _answers(self) -> dict[int, Any]:
        """What the ranks return. One that fails is told at once, while others may wait for it in vain."""
        answers: dict[int, Any] = {}
        deadline = time.monotonic() + JOB_SECONDS
        while waiting := [rank for rank in range(self.world) if rank not in answers]:
            ready, _, _ = select.select(
                [self.connections[rank] for rank in waiting], [], [], max(0.0, deadline - time.monotonic())
            )
            if not ready:
                raise self._failure(f"ranks {waiting} did not answer within {JOB_SECONDS:.0f} s")
            for rank in (rank for rank in waiting if self.connections[rank] in ready):
                answer = self.connections[rank].receive()
                if answer is None:
                    raise self._failure(f"rank {rank} died")
                if "error" in answer:
                    raise WorkerError(f"rank {rank} of {self.world}:\n{answer['error']}")
                answers[rank] = answer["result"]
        return answers

    def _failure(self, what: str) -> WorkerError:
        """The pool is closed, so that all that the workers had to say is there."""
        self._end(GRACE_SECONDS)
        said = self.output.read_text(encoding="utf-8", errors="replace")[-6000:]
        self.close()
        return WorkerError(f"{what}; the workers' output ends with\n{said}")


class WorkerPools:
    """One pool for every world size that was asked for. A context manager: the workers end with it."""

    def __init__(self) -> None:
        self.pools: dict[int, WorkerPool] = {}

    def __enter__(self) -> "WorkerPools":
        with environment_kept():
            import_module("tests.helpers.scripts.plain_deepspeed")  # once, for all workers
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in self.pools.values():
            pool.close()

    def run(self, function: str, job: dict, world: int) -> Any:
        """What rank 0 of `world` workers returns."""
        if world not in self.pools or not self.pools[world].usable:
            self.pools[world] = WorkerPool(world)
        return self.pools[world].run(function, job)

    def train(
        self,
        *,
        stage: int,
        world: int,
        first: int,
        steps: int,
        load: Path | None = None,
        again: Path | None = None,
        save: Path | None = None,
        **more: object,
    ) -> list[float]:
        """The losses of the plain DeepSpeed script on `world` ranks, from step `first` on; the rest: its docstring."""
        places = {
            name: {"dir": str(path.parent), "tag": path.name}
            for name, path in (("load", load), ("again", again), ("save", save))
            if path
        }
        job = {"stage": stage, "first": first, "steps": steps, "seed": 3 + first, **places, **more}
        return self.run("tests.helpers.scripts.plain_deepspeed:train", job, world)

    def supports(self, world: int, **job: object) -> bool:
        """Whether DeepSpeed's accelerator, as the workers see it, trains in the precision of a `train` job."""
        return self.run("tests.helpers.scripts.plain_deepspeed:supports", job, world)
