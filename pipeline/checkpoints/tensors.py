"""Tensors of checkpoints, read when they are asked for, whole or in part: a kind of source each.

Every `LazyTensor` has a shape and one way to be read: `read(start, stop)`, elements of the flat tensor.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class LazyTensor(ABC):
    """A tensor that has not been read yet."""

    def __init__(self, shape: Sequence[int]):
        self.shape = tuple(shape)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of its numbers; where nothing else says it, of the first."""
        return self.read(0, 1).dtype

    @abstractmethod
    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Elements `start` to `stop` (default: the last) of the flat tensor, (stop - start,)."""

    def tensor(self) -> Tensor:
        """The whole tensor in its shape."""
        return self.read().view(self.shape)

    def read_rows(self, rows: range) -> Tensor:
        """Rows along the first axis."""
        width = math.prod(self.shape[1:])
        return self.read(rows.start * width, rows.stop * width).view(len(rows), *self.shape[1:])

    def chunks(self, start: int, stop: int, size: int) -> Iterator[Tensor]:
        """Elements `start` to `stop` in flat pieces of at most `size` elements, one in memory at a time."""
        for begin in range(start, stop, size):
            yield self.read(begin, min(begin + size, stop))


class WholeTensor(LazyTensor):
    """A tensor whose source gives all of it at once: one that is in memory already, or whose file is mapped."""

    @abstractmethod
    def load(self) -> Tensor:
        """All of it, in its shape or flat."""

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self.load().reshape(-1)[start:stop]

    def tensor(self) -> Tensor:
        return self.load().view(self.shape)

    def chunks(self, start: int, stop: int, size: int) -> Iterator[Tensor]:
        """The source is asked once."""
        yield from self.read(start, stop).split(size)


class InMemoryTensor(WholeTensor):
    """A tensor that is here already; one that is mapped from a file costs memory only while its pages are read."""

    def __init__(self, tensor: Tensor):
        super().__init__(tensor.shape)
        self._tensor = tensor

    def load(self) -> Tensor:
        return self._tensor


class ReshapedTensor(LazyTensor):
    """Another tensor's numbers in another shape."""

    def __init__(self, source: LazyTensor, shape: Sequence[int]):
        super().__init__(shape)
        self._source = source

    @property
    def dtype(self) -> torch.dtype:
        return self._source.dtype

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        return self._source.read(start, stop)

    def chunks(self, start: int, stop: int, size: int) -> Iterator[Tensor]:
        return self._source.chunks(start, stop, size)


@dataclass(frozen=True)
class ShardSlice:
    """`length` elements of a tensor from `start`, which lie on `rank` at `offset` of its flat tensor."""

    rank: int
    offset: int
    start: int
    length: int


class ShardedTensor(LazyTensor):
    """A tensor that lies in slices of the ranks' flat tensors; only reading across ranks copies."""

    def __init__(self, shape: Sequence[int], flats: Sequence[Tensor], slices: Sequence[ShardSlice]):
        super().__init__(shape)
        self._flats, self._slices = flats, slices

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        stop = self.numel if stop is None else stop
        parts = []
        for piece in self._slices:
            first, last = max(start, piece.start), min(stop, piece.start + piece.length)
            if first < last:
                shift = piece.offset - piece.start
                parts.append(self._flats[piece.rank][shift + first : shift + last])
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else self._flats[0][:0]


class RowSource(Protocol):
    """Whatever makes a tensor row by row."""

    def rows(self, rows: range) -> Tensor:
        """Rows along the first axis."""
        ...


class GrownTensor(LazyTensor):
    """A tensor that is computed when it is asked for, and of it only the rows that are asked for."""

    def __init__(self, shape: Sequence[int], source: RowSource):
        super().__init__(shape)
        self._source = source

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        stop, width = self.numel if stop is None else stop, math.prod(self.shape[1:])
        rows = range(start // width, -(-stop // width))
        return self._source.rows(rows).reshape(-1)[start - rows.start * width : stop - rows.start * width]


def in_memory(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, LazyTensor]:
    """Named tensors that are already here."""
    return {name: InMemoryTensor(tensor) for name, tensor in tensors}
