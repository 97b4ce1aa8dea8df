"""Writing files as streams of chunks, hashed on the way; several processes share the files.

What is written depends on the files alone, not on the number of processes. Memory holds one tensor at a time, and of
mapped tensors nothing: their pages are their file's.
"""

import hashlib
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from torch import Tensor

from pipeline.errors import UserError
from pipeline.processes import die_with_parent
from pipeline.state import Entry

CHUNK = 1 << 22
"""Elements that are converted, hashed and written at a time."""

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

    entry: Entry | None
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def content(pieces: Iterable[Piece], dtype: torch.dtype, check: Callable[[Tensor, Tensor], None] | None = None) -> Chunks:
    """The bytes of the pieces one after the other. check: gets every chunk before and after the cast to `dtype`."""
    for piece in pieces:
        if piece.entry is None:
            yield from _zeros(piece.length * dtype.itemsize)
            continue
        for chunk in piece.entry.part(piece.start, piece.stop).split(CHUNK):
            cast = chunk.to(dtype).contiguous()
            if check:
                check(chunk, cast)
            yield memoryview(cast.view(torch.uint8).numpy())


def _zeros(size: int) -> Chunks:
    block = bytes(min(size, 4 * CHUNK))
    while size > 0:
        yield memoryview(block)[: min(size, len(block))]
        size -= len(block)


def write(files: list[File], folder: Path, workers: int = 1, progress: bool = False) -> dict[str, dict]:
    """Write the files below `folder`, each synced to disk, in `workers` processes. Returns size and SHA-256 by name, as a
    manifest has them. progress: show a bar on a terminal.

    Raises UserError when there is no room, the disk fills up, or a worker is killed.
    """
    _require_room(files, folder)
    count = min(workers, len(files))
    with Bar(sum(file.size for file in files), progress) as bar:
        largest_first = sorted(files, key=lambda file: -file.size)
        if count > 1:
            return _shared(largest_first, folder, count, bar)
        return {file.name: _one(file, folder, bar.add) for file in largest_first}


def _require_room(files: list[File], folder: Path) -> None:
    need, free = sum(file.size for file in files), shutil.disk_usage(folder).free
    if need > free:
        raise UserError(f"{folder}: needs {need / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free; make room or choose another place")


class Bar:
    """Bytes written so far, by all processes; shown on a terminal."""

    def __init__(self, total: int, shown: bool):
        self.written = multiprocessing.get_context("fork").Value("q", 0)
        self.progress = Progress(TextColumn("writing"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
                                 console=Console(stderr=True), transient=True, disable=not (shown and sys.stderr.isatty()))
        self.task = self.progress.add_task("", total=total)

    def count(self, size: int) -> None:
        with self.written.get_lock():
            self.written.value += size

    def add(self, size: int) -> None:
        self.count(size)
        self.show()

    def show(self) -> None:
        self.progress.update(self.task, completed=self.written.value)

    def __enter__(self) -> "Bar":
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()


_SHARE: tuple[list[File], Path, Bar | None] = ([], Path(), None)
"""What forked workers write: files hold functions, which a fork inherits and a pickle would not carry."""


def _shared(files: list[File], folder: Path, workers: int, bar: Bar) -> dict[str, dict]:
    global _SHARE
    _SHARE = files, folder, bar
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=_begin) as pool:
            running = [pool.submit(_numbered, number) for number in range(len(files))]
            while wait(running, timeout=0.2, return_when=FIRST_EXCEPTION).not_done and not any(f.done() and f.exception() for f in running):
                bar.show()
            for future in running:
                future.cancel()
            failed = next((f.exception() for f in running if f.done() and not f.cancelled() and f.exception()), None)
            if failed:
                raise failed
            return {file.name: future.result() for file, future in zip(files, running, strict=True)}
    except BrokenProcessPool as error:
        raise UserError(f"{folder}: a worker process was killed while writing (out of memory?); use fewer workers") from error
    finally:
        _SHARE = [], Path(), None


def _begin() -> None:
    die_with_parent()
    torch.set_num_threads(1)


def _numbered(number: int) -> dict:
    files, folder, bar = _SHARE
    return _one(files[number], folder, bar.count)


def _one(file: File, folder: Path, count: Callable[[int], None]) -> dict:
    """Write, hash and sync one file."""
    path, digest, size = folder / file.name, hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as handle:
            for chunk in file.chunks():
                handle.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                count(len(chunk))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room or choose another place") from error
    return {"size": size, "sha256": digest.hexdigest()}


def whole(entry: Entry) -> list[Piece]:
    """All of a tensor."""
    return [Piece(entry, 0, torch.Size(entry.shape).numel())]
