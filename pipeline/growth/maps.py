"""How a space grows: maps behind one `apply`. Those of non-learned methods are index maps with a weight per entry,
applied block by block; learned ones are dense and differentiable.

    x* = E x            a vector of the small model as the large one holds it        (growth-math: copy rules)
    R^T E = I           how the large model reads it back                            (read rules)
    N E = 0             what may be added to a reading tensor without being seen     (symmetry breaking)
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

ZERO, MEAN = -1, -2
"""Entries of `IndexMap.index` that copy nothing: a zero, or the mean of all source entries."""


class Run(NamedTuple):
    """Consecutive target entries that copy consecutive source entries with one weight; or ZERO, or MEAN, as `source`."""

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
        return tuple(
            Run(a, int(self.index[a]), b - a, float(self.weight[a])) for a, b in zip(starts, starts[1:], strict=False)
        )

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

    def back(self, y: Tensor, axis: int) -> Tensor:
        """The transpose along `axis`: size d_T becomes d_S. `reads.back(writes.apply(x))` is x."""
        axis = axis % y.dim()
        out = y.new_zeros(*y.shape[:axis], self.source, *y.shape[axis + 1 :])
        for run in self.runs:
            piece = y.narrow(axis, run.target, run.length)
            if run.source == MEAN:
                out += piece.sum(axis, keepdim=True) * (run.weight / self.source)
            elif run.source != ZERO:
                out.narrow(axis, run.source, run.length).add_(piece, alpha=run.weight)
        return out

    def unseen(self, noise: Tensor, axis: int) -> Tensor:
        """The part of `noise` that meets nothing of E x along `axis`: N E = 0 in exact arithmetic.

        Per source entry the weighted sum over its copies is taken out; columns that meet the mean sum to zero in
        every row; columns that meet a zero are free.
        """
        copied = [run for run in self.runs if run.source >= 0]
        seen, squares = self.only(self.index >= 0).back(noise, axis), torch.zeros(self.source, dtype=torch.float64)
        for run in copied:
            squares[run.source : run.source + run.length] += run.weight**2
        seen /= squares.to(noise.dtype).view(-1, *[1] * (noise.dim() - 1 - axis))
        free = noise.clone()
        for run in copied:
            free.narrow(axis, run.target, run.length).sub_(seen.narrow(axis, run.source, run.length), alpha=run.weight)
        means = (self.index == MEAN).nonzero().flatten()
        if len(means):
            where = free.narrow(axis, int(means[0]), len(means))
            where -= where.mean(axis, keepdim=True)
        return free

    def rows(self, rows: range) -> "IndexMap":
        """The map to the target entries `rows` alone."""
        if len(rows) == len(self.index):
            return self
        return replace(self, index=self.index[rows.start : rows.stop], weight=self.weight[rows.start : rows.stop])

    @property
    def needs(self) -> range:
        """The source entries, from the first to the last, that the map looks at."""
        if (self.index == MEAN).any():
            return range(self.source)
        copied = self.index[self.index >= 0]
        return range(int(copied.min()), int(copied.max()) + 1) if len(copied) else range(0)

    def counted_from(self, sources: range) -> "IndexMap":
        """The map of the source entries `sources` alone; it needs no others."""
        if len(sources) == self.source:
            return self
        return IndexMap(torch.where(self.index >= 0, self.index - sources.start, self.index), self.weight, len(sources))

    def kin(self, rows: range) -> Tensor:
        """The target entries whose noise hangs together with that of `rows`: copies of the same sources, or all means."""
        wanted = self.index[rows.start : rows.stop]
        chosen = torch.isin(self.index, wanted[wanted != ZERO])
        chosen[rows.start : rows.stop] = True
        return chosen.nonzero().flatten()

    def among(self, entries: Tensor) -> "IndexMap":
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

    def dense(self) -> Tensor:
        """The matrix itself (d_T, d_S), for tests and for reading."""
        return self.apply(torch.eye(self.source, dtype=torch.float64), 0)


@dataclass(frozen=True)
class DenseMap:
    """Any (target x source) matrix, learned or an interpolation; gradients flow through `apply`."""

    matrix: Tensor

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """The map along `axis`: size d_S becomes d_T, in the dtype of `x`."""
        return torch.tensordot(x, self.matrix.to(x.dtype), dims=([axis], [1])).movedim(-1, axis)

    def back(self, y: Tensor, axis: int) -> Tensor:
        """The transpose along `axis`: size d_T becomes d_S."""
        return torch.tensordot(y, self.matrix.to(y.dtype), dims=([axis], [0])).movedim(-1, axis)

    def rows(self, rows: range) -> "DenseMap":
        """The map to the target entries `rows` alone."""
        return DenseMap(self.matrix[rows.start : rows.stop])

    @property
    def needs(self) -> range:
        """The source entries that the map looks at: all."""
        return range(self.matrix.shape[1])

    def counted_from(self, sources: range) -> "DenseMap":
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
    """What a growth method chooses for one space: E for writers, R for readers, E for a norm's gain, times `eta`.

    appended: new entries are no copies but start fresh (a vocabulary). blind: what its partner does not see of what is
    written here (keys against queries), so that row noise M with E_Q^T M = 0 can live there.
    """

    writes: Map
    reads: Map
    gains: Map
    eta: float = 1.0
    appended: bool = False
    blind: IndexMap | None = None

    @property
    def free(self) -> bool:
        """Whether a reading tensor has a part that is not seen, so that noise can live there."""
        return isinstance(self.writes, IndexMap) and not self.appended and len(self.writes.index) > self.writes.source


Maps = dict[str, SpaceMap]


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
    kept; read by RMSNorm it is zero, so that the mean square is."""
    written = full_copies(source, target, ZERO if rms else MEAN)
    return SpaceMap(
        written, full_copies(source, target, ZERO, source / _covered(source, target)), written, eta(source, target)
    )


def normed(source: int, target: int) -> SpaceMap:
    """A norm's output: the remainder is zero. A gain's remainder meets zero and is free: the mean grow_optimizer_state it alive."""
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
    """A table with rows appended: the old ones stay, the new ones start fresh."""
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
