"""Writing files as streams of chunks, hashed on the way; several processes share the files.

What is written depends on the files alone, not on the number of processes. Memory holds windows of one tensor at a time,
and of mapped tensors nothing: their pages are their file's.
"""

import hashlib
import multiprocessing
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from torch import Tensor

from pipeline.checkpoints.manifest import hashed, sync
from pipeline.checkpoints.state import LazyTensor
from pipeline.errors import UserError
from pipeline.records.processes import die_with_parent, keep_freed_memory

WINDOW = 1 << 22
"""Elements of a tensor that are made at a time."""
CHUNK = 1 << 18
"""Elements that are converted, hashed and written at a time: they stay in a core's own cache."""

Chunks = Iterator[bytes | memoryview]


@dataclass(frozen=True)
class File:
    """A file to write. size: about how many bytes, for sharing the work. chunks: its content in order."""

    name: str
    size: int
    chunks: Callable[[], Chunks]


@dataclass(frozen=True)
class Piece:
    """Elements `start` to `stop` of a tensor, flat; zeros where there is no tensor."""

    entry: LazyTensor | None
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def content(
    pieces: Iterable[Piece], dtype: torch.dtype, check: Callable[[Tensor, Tensor], None] | None = None
) -> Chunks:
    """The bytes of the pieces one after the other. check: gets every chunk before and after the cast to `dtype`."""
    for piece in pieces:
        if piece.entry is None:
            yield from _zeros(piece.length * dtype.itemsize)
            continue
        for window in piece.entry.parts(piece.start, piece.stop, WINDOW):
            for chunk in window.split(CHUNK):
                cast = chunk.to(dtype).contiguous()
                if check:
                    check(chunk, cast)
                yield memoryview(cast.view(torch.uint8).numpy())


def _zeros(size: int) -> Chunks:
    block = bytes(min(size, 4 * CHUNK))
    while size > 0:
        yield memoryview(block)[: min(size, len(block))]
        size -= len(block)


def write(
    files: list[File], folder: Path, workers: int = 1, progress: bool = False, read: Sequence[Path] = ()
) -> tuple[dict[str, dict], dict[Path, dict]]:
    """Write the files below `folder`, each synced to disk, in `workers` processes, which hash the files `read` as well.
    Returns size and SHA-256 of those written, by name, and of those read, as a manifest has them. progress: show a bar on
    a terminal.

    Raises UserError when there is no room, the disk fills up, or a worker is killed.
    """
    _require_room(files, folder)
    files = sorted(files, key=lambda file: -file.size)
    tasks = [partial(_one, file, folder) for file in files] + [partial(hashed, path) for path in read]
    try:
        with Bar(sum(file.size for file in files) + sum(path.stat().st_size for path in read), progress) as bar:
            found = _shared(tasks, min(workers, len(tasks)), bar, partial(_sync, files, folder))
    except BrokenProcessPool as error:
        raise UserError(
            f"{folder}: a worker process was killed while writing (out of memory?); use fewer workers"
        ) from error
    return {file.name: facts for file, facts in zip(files, found, strict=False)}, dict(
        zip(read, found[len(files) :], strict=True)
    )


def _require_room(files: list[File], folder: Path) -> None:
    need, free = sum(file.size for file in files), shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{folder}: needs {need / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free; make room or choose another place"
        )


class Stopped(Exception):
    """Another worker has failed: what this one makes will not be published."""


class Bar:
    """Bytes written so far, by all processes; shown on a terminal. Tells the workers when to stop."""

    def __init__(self, total: int, shown: bool):
        context = multiprocessing.get_context("fork")
        self.written, self.stopped = context.Value("q", 0), context.Value("b", 0)
        self.progress = Progress(
            TextColumn("writing and hashing"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not (shown and sys.stderr.isatty()),
        )
        self.task = self.progress.add_task("", total=total)

    def count(self, size: int) -> None:
        """Called by the workers. Raises Stopped once one of them has failed."""
        if self.stopped.get_obj().value:
            raise Stopped
        with self.written.get_lock():
            self.written.value += size

    def show(self) -> None:
        self.progress.update(self.task, completed=self.written.get_obj().value)  # a worker may have died with the lock

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()


Task = Callable[[Callable[[int], None]], dict]
_SHARE: tuple[list[Task], Bar | None] = ([], None)
"""What forked workers do: tasks hold functions, which a fork inherits and a pickle would not carry."""


def _shared(tasks: list[Task], workers: int, bar: Bar, ended: Callable[[int], None]) -> list[dict]:
    """The results of all tasks; each number is told to `ended` while others run. Always in forked processes of one thread
    each: what they sum up does not depend on how many they are."""
    global _SHARE
    _SHARE = tasks, bar
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=_begin) as pool:
            running = {pool.submit(_numbered, number): number for number in range(len(tasks))}
            try:
                _follow(running, bar, ended)
            except BaseException:
                bar.stopped.value = True
                raise
            finally:
                pool.shutdown(cancel_futures=True)
            return [future.result() for future in running]
    finally:
        _SHARE = [], None


def _follow(running: dict[Future, int], bar: Bar, ended: Callable[[int], None]) -> None:
    """Wait for all of them, and raise what the first that fails has raised."""
    pending = set(running)
    while pending:
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
        bar.show()
        for future in done:
            future.result()
            ended(running[future])


def _begin() -> None:
    die_with_parent()
    keep_freed_memory(8 * WINDOW * 4)
    torch.set_num_threads(1)


def _numbered(number: int) -> dict:
    tasks, bar = _SHARE
    return tasks[number](bar.count)


def _one(file: File, folder: Path, count: Callable[[int], None]) -> dict:
    """Write and hash one file."""
    path, digest, size = folder / file.name, hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with _explained(path), path.open("wb") as handle:
        for chunk in file.chunks():
            handle.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            count(len(chunk))
    return {"size": size, "sha256": digest.hexdigest()}


def _sync(files: list[File], folder: Path, number: int) -> None:
    """Have one written file synced to disk, while the workers write others."""
    if number < len(files):
        with _explained(folder / files[number].name):
            sync(folder / files[number].name)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room or choose another place") from error


def whole(entry: LazyTensor) -> list[Piece]:
    """All of a tensor."""
    return [Piece(entry, 0, torch.Size(entry.shape).numel())]
