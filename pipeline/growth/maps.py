"""How a space grows: maps behind one `apply`. Those of non-learned methods are index maps with a weight per entry,
applied by gather and scale; learned ones are dense and differentiable.

    x* = E x            a vector of the small model as the large one holds it        (growth-math: copy rules)
    R^T E = I           how the large model reads it back                            (read rules)
    N E = 0             what may be added to a reading tensor without being seen     (symmetry breaking)
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

ZERO, MEAN = -1, -2
"""Entries of `IndexMap.index` that copy nothing: a zero, or the mean of all source entries."""


@dataclass(frozen=True)
class IndexMap:
    """A (target x source) matrix with at most one source per row, or the source's mean.

    index (d_T,): source entry of each target entry, or ZERO, or MEAN. weight (d_T,): float64 factors.
    """

    index: Tensor
    weight: Tensor
    source: int

    @property
    def identity(self) -> bool:
        same = len(self.index) == self.source and bool((self.index == torch.arange(self.source)).all())
        return same and bool((self.weight == 1).all())

    def apply(self, x: Tensor, axis: int) -> Tensor:
        """The map along `axis`: size d_S becomes d_T, in the dtype of `x`."""
        if self.identity:
            return x
        out = x.index_select(axis, self.index.clamp(min=0))
        shape = [1] * x.dim()
        shape[axis] = -1
        if (self.index == MEAN).any():
            out = torch.where((self.index == MEAN).view(shape), x.mean(axis, keepdim=True), out)
        factors = torch.where(self.index == ZERO, 0.0, self.weight)
        return out if bool((factors == 1).all()) else out * factors.to(x.dtype).view(shape)

    def back(self, y: Tensor, axis: int) -> Tensor:
        """The transpose along `axis`: size d_T becomes d_S. `reads.back(writes.apply(x))` is x."""
        y = y.movedim(axis, -1)
        weighted = y * torch.where(self.index >= 0, self.weight, 0.0).to(y.dtype)
        out = y.new_zeros(*y.shape[:-1], self.source).index_add_(-1, self.index.clamp(min=0), weighted)
        means = self.index == MEAN
        if means.any():
            out = out + (y[..., means] * self.weight[means].to(y.dtype)).sum(-1, keepdim=True) / self.source
        return out.movedim(-1, axis)

    def unseen(self, noise: Tensor, axis: int) -> Tensor:
        """The part of `noise` that meets nothing of E x along `axis`: N E = 0 in exact arithmetic.

        Per source entry the weighted sum over its copies is taken out; columns that meet the mean sum to zero in
        every row; columns that meet a zero are free.
        """
        noise, copies = noise.movedim(axis, -1), self.index >= 0
        owner, weight = self.index.clamp(min=0), torch.where(copies, self.weight, 0.0).to(noise.dtype)
        squares = torch.zeros(self.source, dtype=noise.dtype).index_add_(0, owner, weight**2)
        seen = noise.new_zeros(*noise.shape[:-1], self.source).index_add_(-1, owner, noise * weight)
        free = noise - (seen / squares).index_select(-1, owner) * weight
        means = self.index == MEAN
        if means.any():
            free[..., means] -= free[..., means].mean(-1, keepdim=True)
        return free.movedim(-1, axis)

    def scaled(self, factor: float) -> "IndexMap":
        return self if factor == 1 else replace(self, weight=self.weight * factor)

    def squared(self) -> "IndexMap":
        """Every entry squared, as second moments transform (the mean of squares stands for the square of a mean)."""
        factor = torch.where(self.index == MEAN, 1 / self.source, 1.0)
        return replace(self, weight=self.weight**2 * factor)

    def only(self, kept: Tensor) -> "IndexMap":
        """The rows `kept` (d_T,) of the map; the others become zero."""
        return replace(self, index=torch.where(kept, self.index, ZERO))

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

    def scaled(self, factor: float) -> "DenseMap":
        return DenseMap(self.matrix * factor)

    def squared(self) -> "DenseMap":
        return DenseMap(self.matrix**2)


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
    index[source * (target // source):] = remainder
    return IndexMap(index, torch.full((target,), weight, dtype=torch.float64), source)


def shared(index: Tensor, source: int) -> SpaceMap:
    """Entry `index[t]` copied to t; readers share equally among an entry's copies."""
    counts = torch.bincount(index, minlength=source).to(torch.float64)
    written = copies(index, source)
    return SpaceMap(written, IndexMap(index, 1 / counts[index], source), written)


def circular(source: int, target: int) -> SpaceMap:
    """Entries copied round and round."""
    return shared(torch.arange(target) % source, source)


def stream(source: int, target: int, rms: bool = False) -> SpaceMap:
    """The residual stream. Read by LayerNorm, the remainder is the mean, so that mean and (up to eta^2) variance are
    kept; read by RMSNorm it is zero, so that the mean square is."""
    written = full_copies(source, target, ZERO if rms else MEAN)
    return SpaceMap(written, full_copies(source, target, ZERO, source / _covered(source, target)), written, eta(source, target))


def normed(source: int, target: int) -> SpaceMap:
    """A norm's output: the remainder is zero. A gain's remainder meets zero and is free: the mean keeps it alive."""
    share = source / _covered(source, target)
    return SpaceMap(full_copies(source, target, ZERO), full_copies(source, target, ZERO, share), full_copies(source, target, MEAN), eta(source, target))


def tied(source: int, target: int) -> SpaceMap:
    """A norm's output read by the grown token embedding, which counts each source entry k times: divide by k."""
    share = source / _covered(source, target)
    return SpaceMap(full_copies(source, target, ZERO, share), full_copies(source, target, MEAN), full_copies(source, target, MEAN, share), eta(source, target))


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
