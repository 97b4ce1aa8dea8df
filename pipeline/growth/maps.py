"""How a space grows: the matrices E (what writes it) and R (what reads it), as maps behind one `apply`.

    x* = E x            a vector of the small model as the large one holds it        (growth-math, section 2)
    R^T E = I           how the large model reads it back                            (section 3)
    N E = 0             what may be added to a reading tensor without being seen     (equation 2)

The residual stream in the growth from 2 to 3 (growth-math, section 4): x = (3, 1) becomes x* = (3, 1, 2), so

    E = ( 1    0  )      one full copy,        R = ( 1  0 )      readers take the copy
        ( 0    1  )                                ( 0  1 )
        ( 1/2 1/2 )      then the mean             ( 0  0 )      and leave the mean alone

As an `IndexMap`, E is index (0, 1, MEAN) with weights (1, 1, 1), two blocks: it is never written down as a matrix,
because at the sizes of real models such a product would cost more than everything else. Learned maps and
interpolations have no such structure: they are `DenseMap`s, and gradients flow through them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

ZERO, MEAN = -1, -2
"""Entries of `IndexMap.index` that copy nothing: a zero, or the mean of all source entries."""


class Run(NamedTuple):
    """Consecutive target entries that copy consecutive source entries with one weight; or ZERO, or MEAN, as
    `source`."""

    target: int
    source: int
    length: int
    weight: float


@dataclass(frozen=True)
class IndexMap:
    """A (target x source) matrix with at most one source per row, or the source's mean.

    index (d_T,): source entry of each target entry, or ZERO, or MEAN. weight (d_T,): float64 factors.
    """

    index: Tensor
    weight: Tensor
    source: int

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The map in as few blocks as it has: full copies are moved as blocks, not entry by entry."""
        step = (self.index[:-1] >= 0).long()
        broken = (self.index[1:] - self.index[:-1] != step) | (self.weight[1:] != self.weight[:-1])
        starts = [0, *(broken.nonzero().flatten() + 1).tolist(), len(self.index)] if len(self.index) else [0]
        return tuple(Run(a, int(self.index[a]), b - a, float(self.weight[a])) for a, b in pairwise(starts))

    @property
    def identity(self) -> bool:
        return self.runs == (Run(0, 0, self.source, 1.0),)

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """The map along `axis`: size d_S becomes d_T, in the dtype of `x`."""
        if self.identity:
            return x
        pieces = [self._piece(x, axis, run) for run in self.runs]
        return torch.cat(pieces, axis) if len(pieces) != 1 else pieces[0]

    def _piece(self, x: Tensor, axis: int, run: Run) -> Tensor:
        if run.source == ZERO:
            return x.new_zeros(*x.shape[:axis], run.length, *x.shape[axis + 1 :])
        if run.source == MEAN:
            return (x.mean(axis, keepdim=True) * run.weight).expand(*x.shape[:axis], run.length, *x.shape[axis + 1 :])
        piece = x.narrow(axis, run.source, run.length)
        return piece if run.weight == 1 else piece * run.weight

    def apply_transpose(self, y: Tensor, axis: int) -> Tensor:
        """The transpose along `axis`: size d_T becomes d_S. `reads.apply_transpose(writes.apply(x))` is x."""
        axis = axis % y.dim()
        out = y.new_zeros(*y.shape[:axis], self.source, *y.shape[axis + 1 :])
        for run in self.runs:
            piece = y.narrow(axis, run.target, run.length)
            if run.source == MEAN:
                out += piece.sum(axis, keepdim=True) * (run.weight / self.source)
            elif run.source != ZERO:
                out.narrow(axis, run.source, run.length).add_(piece, alpha=run.weight)
        return out

    def project_to_null_space(self, noise: Tensor, axis: int) -> Tensor:
        """The part N of `noise` with N E = 0 along `axis`, in exact arithmetic (growth-math, equation 2).

        Per source entry the weighted sum over its copies is taken out; columns that multiply the mean sum to zero in
        every row; columns that multiply a zero are free.
        """
        copied = [run for run in self.runs if run.source >= 0]
        sums = self.only(self.index >= 0).apply_transpose(noise, axis)
        sums /= self._squares(copied).to(noise.dtype).view(-1, *[1] * (noise.dim() - 1 - axis))
        free = noise.clone()
        for run in copied:
            free.narrow(axis, run.target, run.length).sub_(sums.narrow(axis, run.source, run.length), alpha=run.weight)
        means = (self.index == MEAN).nonzero().flatten()
        if len(means):
            remainder = free.narrow(axis, int(means[0]), len(means))
            remainder -= remainder.mean(axis, keepdim=True)
        return free

    def _squares(self, copied: list[Run]) -> Tensor:
        """The diagonal of E^T E: for each source entry the sum of its copies' squared weights."""
        squares = torch.zeros(self.source, dtype=torch.float64)
        for run in copied:
            squares[run.source : run.source + run.length] += run.weight**2
        return squares

    def rows(self, rows: range) -> "IndexMap":
        """The map to the target entries `rows` alone."""
        if len(rows) == len(self.index):
            return self
        return replace(self, index=self.index[rows.start : rows.stop], weight=self.weight[rows.start : rows.stop])

    @property
    def source_range(self) -> range:
        """The source entries, from the first to the last, that the map reads."""
        if (self.index == MEAN).any():
            return range(self.source)
        copied = self.index[self.index >= 0]
        return range(int(copied.min()), int(copied.max()) + 1) if len(copied) else range(0)

    def rebase(self, sources: range) -> "IndexMap":
        """The same map of the source entries `sources` alone, counted from the first of them; it reads no others."""
        if len(sources) == self.source:
            return self
        return IndexMap(torch.where(self.index >= 0, self.index - sources.start, self.index), self.weight, len(sources))

    def coupled_rows(self, rows: range) -> Tensor:
        """The target entries without which `rows` cannot be projected to the null space: all copies of the sources that
        `rows` copy, and all means if one of `rows` is a mean. Rising order."""
        sources = self.index[rows.start : rows.stop]
        coupled = torch.isin(self.index, sources[sources != ZERO])
        coupled[rows.start : rows.stop] = True
        return coupled.nonzero().flatten()

    def restrict(self, entries: Tensor) -> "IndexMap":
        """The map to the target entries `entries` (n,), of the sources that they copy alone."""
        index = self.index[entries]
        used, place = index[index >= 0].unique(return_inverse=True)
        index[index >= 0] = place
        return IndexMap(index, self.weight[entries], len(used))

    def scaled(self, factor: float) -> "IndexMap":
        return self if factor == 1 else replace(self, weight=self.weight * factor)

    def squared(self) -> "IndexMap":
        """Every entry squared, as second moments transform (the mean of squares stands for the square of a mean)."""
        squares = self.weight**2
        return replace(self, weight=torch.where(self.index == MEAN, squares / self.source, squares))

    def only(self, kept: Tensor) -> "IndexMap":
        """The rows `kept` (d_T,) of the map; the others become zero."""
        return replace(self, index=torch.where(kept, self.index, ZERO))

    def copied(self) -> "IndexMap":
        """The copies alone: what reads the mean becomes zero."""
        return self.only(self.index != MEAN)

    def first_copies(self) -> "IndexMap":
        """For every source entry its first copy alone, with weight 1; zeros elsewhere."""
        places = torch.arange(len(self.index))
        first = torch.full((self.source,), len(self.index))
        copied = self.index >= 0
        first.scatter_reduce_(0, self.index[copied], places[copied], "amin")
        is_first = copied & (first[self.index.clamp(min=0)] == places) if self.source else copied
        return copies(torch.where(is_first, self.index, ZERO), self.source)

    def all_copies(self) -> "IndexMap":
        """Every copy with weight 1; zeros elsewhere."""
        return copies(torch.where(self.index >= 0, self.index, ZERO), self.source)

    def dense(self) -> Tensor:
        """The matrix itself (d_T, d_S), for tests and for reading."""
        return self.apply(torch.eye(self.source, dtype=torch.float64), 0)


@dataclass(frozen=True)
class DenseMap:
    """Any (target x source) matrix, learned or an interpolation; gradients flow through `apply`."""

    matrix: Tensor

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """The map along `axis`: size d_S becomes d_T, in the dtype of `x`."""
        product: Tensor = torch.tensordot(x, self.matrix.to(x.dtype), dims=([axis], [1]))
        return product.movedim(-1, axis)

    def apply_transpose(self, y: Tensor, axis: int) -> Tensor:
        """The transpose along `axis`: size d_T becomes d_S."""
        product: Tensor = torch.tensordot(y, self.matrix.to(y.dtype), dims=([axis], [0]))
        return product.movedim(-1, axis)

    def rows(self, rows: range) -> "DenseMap":
        """The map to the target entries `rows` alone."""
        return DenseMap(self.matrix[rows.start : rows.stop])

    @property
    def source_range(self) -> range:
        """The source entries that the map reads: all."""
        return range(self.matrix.shape[1])

    def rebase(self, sources: range) -> "DenseMap":
        """The map of the source entries `sources` alone."""
        return DenseMap(self.matrix[:, sources.start : sources.stop])

    def scaled(self, factor: float) -> "DenseMap":
        return DenseMap(self.matrix * factor)

    def squared(self) -> "DenseMap":
        return DenseMap(self.matrix**2)

    def copied(self) -> "DenseMap":
        return self


Map = IndexMap | DenseMap


@dataclass(frozen=True)
class SpaceMap:
    """What a growth method decides for one space: E for writers, R for readers, E for a norm's gain, times `eta`.

    appended: new entries are no copies but start fresh (a vocabulary). query_null_space: of the space of keys, the E of
    the queries that multiply them inside a head: what is added to the keys along its null space, queries do not see.
    """

    writes: Map
    reads: Map
    gains: Map
    eta: float = 1.0
    appended: bool = False
    query_null_space: IndexMap | None = None

    @property
    def free(self) -> bool:
        """Whether a reading tensor has a part N with N E = 0, where noise can live."""
        return isinstance(self.writes, IndexMap) and not self.appended and len(self.writes.index) > self.writes.source


LayerKey = tuple[str, int]
"""(stack, layer of the target)."""


@dataclass(frozen=True)
class Maps(Mapping[str, SpaceMap]):
    """Space -> its map. overrides: (stack, target layer) -> maps of the spaces that grow otherwise in that layer.

    Spaces that layers share (the residual stream, norms' outputs) must not differ from layer to layer: what one layer
    writes another reads.
    """

    spaces: Mapping[str, SpaceMap]
    overrides: Mapping[LayerKey, Mapping[str, SpaceMap]] = field(default_factory=dict)

    def __getitem__(self, space: str) -> SpaceMap:
        return self.spaces[space]

    def __iter__(self) -> Iterator[str]:
        return iter(self.spaces)

    def __len__(self) -> int:
        return len(self.spaces)

    def at(self, space: str, stack: str, layer: int | None) -> SpaceMap:
        """The map of a space in a layer of a stack; outside of layers (None) that of the space."""
        if layer is None:
            return self.spaces[space]
        return self.overrides.get((stack, layer), {}).get(space, self.spaces[space])


def copies(index: Tensor, source: int) -> IndexMap:
    return IndexMap(index, torch.ones(len(index), dtype=torch.float64), source)


def same(size: int) -> SpaceMap:
    """A space that does not grow."""
    identity = copies(torch.arange(size), size)
    return SpaceMap(identity, identity, identity)


def full_copies(source: int, target: int, remainder: int, weight: float = 1.0) -> IndexMap:
    """k = target // source full copies times `weight`; the r remaining entries are ZERO or MEAN."""
    index = torch.arange(target) % source
    index[source * (target // source) :] = remainder
    return IndexMap(index, torch.full((target,), weight, dtype=torch.float64), source)


def shared(index: Tensor, source: int) -> SpaceMap:
    """Entry `index[t]` copied to t; readers share equally among an entry's copies."""
    counts = torch.bincount(index, minlength=source).to(torch.float64)
    written = copies(index, source)
    return SpaceMap(written, IndexMap(index, 1 / counts[index], source), written)


def circular(source: int, target: int) -> SpaceMap:
    """Entries copied round and round."""
    return shared(torch.arange(target) % source, source)


def residual(source: int, target: int, rms: bool = False) -> SpaceMap:
    """The residual stream. Read by LayerNorm, the remainder is the mean, so that mean and (up to eta^2) variance are
    kept; read by RMSNorm it is zero, so that the mean square is. So does what a norm at the end of a branch reads, and
    the remainder of its gain scales zero and is free: the mean keeps it alive."""
    return SpaceMap(
        full_copies(source, target, ZERO if rms else MEAN),
        full_copies(source, target, ZERO, source / _covered(source, target)),
        full_copies(source, target, MEAN),
        eta(source, target),
    )


def normed(source: int, target: int) -> SpaceMap:
    """A norm's output: the remainder is zero. A gain's remainder scales zero and is free: the mean keeps it alive."""
    share = source / _covered(source, target)
    return SpaceMap(
        full_copies(source, target, ZERO),
        full_copies(source, target, ZERO, share),
        full_copies(source, target, MEAN),
        eta(source, target),
    )


def tied(source: int, target: int, rms: bool = False) -> SpaceMap:
    """A norm's output read by the grown token embedding, which counts each source entry k times: divide by k."""
    share = source / _covered(source, target)
    read = full_copies(source, target, ZERO if rms else MEAN)  # as the embedding writes the stream
    return SpaceMap(
        full_copies(source, target, ZERO, share), read, full_copies(source, target, MEAN, share), eta(source, target)
    )


def appended(source: int, target: int) -> SpaceMap:
    """Rows appended: the old ones stay, the new ones start fresh."""
    index = torch.arange(target)
    index[source:] = ZERO
    kept = copies(index, source)
    return SpaceMap(kept, kept, kept, appended=True)


def eta(source: int, target: int) -> float:
    """sqrt(k D_S / D_T): the gain's factor, since k of k + r/D_S copies carry the variance (growth-math, section 4)."""
    return math.sqrt(_covered(source, target) / target)


def _covered(source: int, target: int) -> int:
    """Entries that belong to full copies: k * D_S."""
    return source * (target // source)
