"""Several processes that write and hash the files of a checkpoint.

What is written depends on the files alone, not on the number of processes: each has one thread, so what it sums up does
not depend on how many they are.
"""

import gc
import logging
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Protocol

import torch

from pipeline.checkpoints import publish
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.checkpoints.serialization.byte_stream import WINDOW, OutputFile
from pipeline.checkpoints.serialization.progress import ByteProgress
from pipeline.checkpoints.serialization.write_back import WriteBack
from pipeline.errors import ELSEWHERE, UserError, writing_to
from pipeline.records.file_hashes import FASTEST, Algorithm, FileRecord, hasher, record
from pipeline.records.processes import Helpers, be_a_helper, keep_freed_memory

logger = logging.getLogger(__name__)

NOTHING: Mapping[Path, Algorithm] = {}


def write_files(
    files: Sequence[OutputFile],
    folder: Path,
    workers: int = 1,
    read: Mapping[Path, Algorithm] = NOTHING,
    algorithm: Algorithm = FASTEST,
) -> tuple[dict[str, FileRecord], dict[Path, FileRecord]]:
    """Write the files below `folder`, each synced to disk, in `workers` processes, and hash them by `algorithm`; the
    files `read` are hashed as well, each by its own. Returns the records of those written, by name, and of those read.

    Raises UserError when there is no room, the disk fills up, or a worker is killed.
    """
    writing = [WriteTask(file, folder, algorithm) for file in files]
    reading = [HashTask(path, by) for path, by in read.items()]
    records = carry_out([*writing, *reading], folder, workers)
    written = {task.file.name: record for task, record in zip(writing, records, strict=False)}
    return written, dict(zip(read, records[len(writing) :], strict=True))


def carry_out(tasks: "Sequence[Task]", folder: Path, workers: int) -> list[FileRecord]:
    """The records of all tasks, in their order, which `workers` processes carry out; those that write do so below
    `folder`. Raises UserError as `write_files` does."""
    _require_room(tasks, folder)
    order = sorted(range(len(tasks)), key=lambda number: (tasks[number].room == 0, -tasks[number].size))
    total, workers, begun = sum(task.size for task in tasks), min(workers, len(tasks)), time.monotonic()
    try:
        with ByteProgress("writing and hashing", total) as bar:
            records = dict(zip(order, WriterPool([tasks[number] for number in order], workers, bar).run(), strict=True))
    except BrokenProcessPool as error:
        raise UserError(
            f"{folder}: a worker process was killed while writing (out of memory?); use fewer workers"
        ) from error
    for number, file in sorted(records.items()):
        logger.debug(f"{tasks[number].words}, {file.size:,} bytes")
    seconds = time.monotonic() - begun
    logger.debug(f"{total / 2**20:,.1f} MiB written and hashed in {seconds:.1f} s by {workers} processes")
    return [records[number] for number in range(len(tasks))]


def _require_room(tasks: "Sequence[Task]", folder: Path) -> None:
    need, free = sum(task.room for task in tasks), shutil.disk_usage(folder).free
    if need > free:
        raise UserError(f"{folder}: needs {amount(need)}, {amount(free)} are free; make room or choose another place")


Count = Callable[[int], None]
"""Told how many more bytes are done."""


class Task(Protocol):
    """One file's share of the work. words: what was done when it is done; size: bytes to be written or read; room:
    bytes that it takes on the disk."""

    @property
    def words(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def room(self) -> int: ...

    def run(self, count: Count) -> FileRecord:
        """Called in a worker process."""
        ...

    def finish(self, record: FileRecord) -> None:
        """Called in the main process with what `run` has returned, while the workers are at other tasks."""
        ...


@dataclass(frozen=True)
class WriteTask:
    """Write a file, and hash what is written."""

    file: OutputFile
    folder: Path
    algorithm: Algorithm = FASTEST
    way_out: str = ELSEWHERE

    @property
    def path(self) -> Path:
        return self.folder / self.file.name

    @property
    def words(self) -> str:
        return f"wrote {self.file.name}"

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def room(self) -> int:
        return self.file.size

    def run(self, count: Count) -> FileRecord:
        content, size = hasher(self.algorithm), 0
        with writing_to(self.path, self.way_out):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("wb") as handle:
                flowing = WriteBack(handle.fileno())
                for chunk in self.file.content.chunks():
                    content.update(chunk)  # first: of a mapped source the kernel copies faster what has been touched
                    handle.write(chunk)
                    size += len(chunk)
                    flowing.written(size)
                    count(len(chunk))
        return FileRecord(size=size, algorithm=self.algorithm, digest=content.hexdigest())

    def finish(self, record: FileRecord) -> None:
        with writing_to(self.path, self.way_out):
            publish.sync(self.path)


@dataclass(frozen=True)
class HashTask:
    """Hash a file that is there already."""

    path: Path
    algorithm: Algorithm
    room = 0

    @property
    def words(self) -> str:
        return f"read {self.path}"

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    def run(self, count: Count) -> FileRecord:
        return record(self.path, self.algorithm, count)

    def finish(self, record: FileRecord) -> None:
        """Nothing was written."""


class Stopped(Exception):  # noqa: N818 - no error, an order
    """Another worker has failed: what this one makes will not be published."""


@dataclass(frozen=True)
class Counter:
    """Bytes done by all processes together; tells them when to stop."""

    done: "Synchronized[int]"
    stopped: "Synchronized[int]"

    @classmethod
    def fresh(cls) -> "Counter":
        context = multiprocessing.get_context("fork")
        return cls(context.Value("q", 0), context.Value("b", 0))

    def add(self, size: int) -> None:
        """Called by the workers. Raises Stopped once one of them has failed."""
        if self.stopped.get_obj().value:
            raise Stopped
        with self.done.get_lock():
            self.done.value += size


@dataclass(frozen=True)
class Inheritance:
    """What a forked worker has from the main process."""

    tasks: Sequence[Task]
    counter: Counter


_inherited: Inheritance | None = None
"""Set in the workers alone, by `_begin`: a fork inherits tasks that hold tensors, which a pickle could not carry."""


def _begin(tasks: Sequence[Task], counter: Counter, parent: int) -> None:
    """The start of every worker."""
    global _inherited
    _inherited = Inheritance(tasks, counter)
    be_a_helper(parent)
    gc.freeze()  # what was inherited is no garbage: it need not be looked at again
    keep_freed_memory(8 * WINDOW * 4)
    torch.set_num_threads(1)


def _run(number: int) -> FileRecord:
    """Run one task, in a worker."""
    assert _inherited is not None
    return _inherited.tasks[number].run(_inherited.counter.add)


class WriterPool:
    """Forked processes of one thread each that share a list of tasks."""

    def __init__(self, tasks: Sequence[Task], workers: int, bar: ByteProgress):
        self.tasks, self.workers, self.bar, self.counter = tasks, workers, bar, Counter.fresh()

    def run(self) -> list[FileRecord]:
        """The records of all tasks, in their order. Raises what the first that fails has raised."""
        begin = (self.tasks, self.counter, os.getpid())
        with ProcessPoolExecutor(self.workers, Helpers(), initializer=_begin, initargs=begin) as pool:
            running = {pool.submit(_run, number): task for number, task in enumerate(self.tasks)}
            try:
                self._follow(running)
            except BaseException:
                self.counter.stopped.value = 1
                raise
            finally:
                pool.shutdown(cancel_futures=True)
            return [future.result() for future in running]

    def _follow(self, running: dict[Future[FileRecord], Task]) -> None:
        pending = set(running)
        while pending:
            ended, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            self.bar.show(self.counter.done.get_obj().value)  # without the lock: a worker may have died with it
            for future in ended:
                running[future].finish(future.result())
