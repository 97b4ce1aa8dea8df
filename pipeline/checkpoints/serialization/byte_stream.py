"""Files that are written as streams of bytes: what is in memory is one window of one tensor, and of mapped tensors
nothing, for their pages are their file's."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pipeline.checkpoints.relative_paths import is_below
from pipeline.checkpoints.tensors import LazyTensor
from pipeline.errors import UserError

WINDOW = 1 << 22
"""Elements of a tensor that are made at a time."""
CHUNK = 1 << 18
"""Elements that are converted, hashed and written at a time: they stay in a core's own cache."""

Chunks = Iterator[bytes | memoryview]


class FileContent(Protocol):
    """Whatever a file is made of."""

    def chunks(self) -> Chunks:
        """Its bytes in order."""
        ...


@dataclass(frozen=True)
class Bytes:
    """Content that is here already."""

    data: bytes

    def chunks(self) -> Chunks:
        yield self.data


@dataclass(frozen=True)
class OutputFile:
    """A file to write, by its path below the result's folder. size: about how many bytes, for sharing the work and for
    the room that is needed. Raises UserError for a name that leads elsewhere."""

    name: str
    size: int
    content: FileContent

    def __post_init__(self) -> None:
        if not is_below(self.name):
            raise UserError(f"'{self.name}' would be written outside the result's folder; nothing was written")

    @classmethod
    def of(cls, name: str, data: bytes) -> "OutputFile":
        """A small file."""
        return cls(name, len(data), Bytes(data))


@dataclass(frozen=True)
class TensorSlice:
    """Elements `start` to `stop` of a tensor, flat; zeros where there is no tensor."""

    tensor: LazyTensor | None
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


def whole(tensor: LazyTensor) -> list[TensorSlice]:
    """All of a tensor."""
    return [TensorSlice(tensor, 0, tensor.numel)]


Check = Callable[[Tensor, Tensor], None]
"""Gets every chunk before and after a cast."""


def tensor_bytes(slices: Iterable[TensorSlice], dtype: torch.dtype, check: Check | None = None) -> Chunks:
    """The bytes of the slices one after the other, cast to `dtype`."""
    for piece in slices:
        if piece.tensor is None:
            yield from _zeros(piece.length * dtype.itemsize)
            continue
        for window in piece.tensor.chunks(piece.start, piece.stop, WINDOW):
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
