"""Writing files as streams of chunks, hashed on the way; several processes share the files.

What is written depends on the files alone, not on the number of processes. Memory holds one tensor at a time, and of
mapped tensors nothing: their pages are their file's.
"""

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
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


def write(files: list[File], folder: Path, workers: int = 1, done: Callable[[File], None] = lambda file: None) -> dict[str, dict]:
    """Write the files below `folder`, each synced to disk. Returns size and SHA-256 by name, as a manifest has them.

    Raises UserError when a worker is killed, or the disk is full.
    """
    largest_first = sorted(files, key=lambda file: -file.size)
    if min(workers, len(files)) <= 1:
        return {file.name: _finished(_one(file, folder), file, done) for file in largest_first}
    return _shared(largest_first, folder, min(workers, len(files)), done)


def _finished(found: dict, file: File, done: Callable[[File], None]) -> dict:
    done(file)
    return found


_SHARE: tuple[list[File], Path] = ([], Path())
"""What forked workers write: files hold functions, which a fork inherits and a pickle would not carry."""


def _shared(files: list[File], folder: Path, workers: int, done: Callable[[File], None]) -> dict[str, dict]:
    global _SHARE
    _SHARE = files, folder
    try:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), initializer=_begin) as pool:
            running = {pool.submit(_numbered, number): file for number, file in enumerate(files)}
            return {running[future].name: _finished(future.result(), running[future], done) for future in as_completed(running)}
    except BrokenProcessPool as error:
        raise UserError(f"{folder}: a worker process was killed while writing (out of memory?); use fewer workers") from error
    finally:
        _SHARE = [], Path()


def _begin() -> None:
    die_with_parent()
    torch.set_num_threads(1)


def _numbered(number: int) -> dict:
    files, folder = _SHARE
    return _one(files[number], folder)


def _one(file: File, folder: Path) -> dict:
    """Write, hash and sync one file."""
    path, digest, size = folder / file.name, hashlib.sha256(), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as handle:
            for chunk in file.chunks():
                handle.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); make room or choose another place") from error
    return {"size": size, "sha256": digest.hexdigest()}


def whole(entry: Entry) -> list[Piece]:
    """All of a tensor."""
    return [Piece(entry, 0, torch.Size(entry.shape).numel())]
