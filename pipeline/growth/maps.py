"""How a space grows: index maps with a weight per entry, applied by gather and scale, never as dense matrices.

    x* = E x            a vector of the small model as the large one holds it        (growth-math: copy rules)
    R^T E = I           how the large model reads it back                            (read rules)
    N E = 0             what may be added to a reading tensor without being seen     (symmetry breaking)
"""

import math
from dataclasses import dataclass

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
        """The map along `axis`: size d_S becomes d_T. float64 in, float64 out."""
        if self.identity:
            return x
        out = x.index_select(axis, self.index.clamp(min=0))
        shape = [1] * x.dim()
        shape[axis] = -1
        if (self.index == MEAN).any():
            out = torch.where((self.index == MEAN).view(shape), x.mean(axis, keepdim=True), out)
        return out * torch.where(self.index == ZERO, 0.0, self.weight).view(shape)

    def dense(self) -> Tensor:
        """The matrix itself (d_T, d_S), for tests and for reading."""
        return self.apply(torch.eye(self.source, dtype=torch.float64), 0)


@dataclass(frozen=True)
class SpaceMap:
    """What a growth method chooses for one space: E for writers, R for readers, and E for a norm's gain."""

    writes: IndexMap
    reads: IndexMap
    gains: IndexMap

    @property
    def free(self) -> bool:
        """Whether a reading tensor has a part that is not seen, so that noise can live there."""
        return len(self.writes.index) > self.writes.source

    def project(self, noise: Tensor, axis: int) -> Tensor:
        """The part of `noise` that meets nothing along `axis`: N E = 0 exactly in exact arithmetic.

        Per source entry the weighted sum over its copies is taken out; columns that meet the mean sum to zero in
        every row; columns that meet a zero are free.
        """
        noise, index, weight = noise.movedim(axis, -1), self.writes.index, self.writes.weight
        copies = index >= 0
        owner = index.clamp(min=0)
        weight = torch.where(copies, weight, 0.0)
        squares = torch.zeros(self.writes.source, dtype=noise.dtype).index_add_(0, owner, weight**2)
        seen = noise.new_zeros(*noise.shape[:-1], self.writes.source).index_add_(-1, owner, noise * weight)
        free = noise - (seen / squares).index_select(-1, owner) * weight
        means = index == MEAN
        if means.any():
            free[..., means] -= free[..., means].mean(-1, keepdim=True)
        return free.movedim(-1, axis)


def same(size: int) -> SpaceMap:
    """A space that does not grow."""
    identity = IndexMap(torch.arange(size), torch.ones(size, dtype=torch.float64), size)
    return SpaceMap(identity, identity, identity)


def full_copies(source: int, target: int, remainder: int, weight: float = 1.0) -> IndexMap:
    """k = target // source full copies times `weight`; the r remaining entries are ZERO or MEAN."""
    index = torch.arange(target) % source
    index[source * (target // source):] = remainder
    return IndexMap(index, torch.full((target,), weight, dtype=torch.float64), source)


def circular(source: int, target: int, unit: int = 1) -> SpaceMap:
    """Whole units of `unit` entries copied round and round; readers share equally among a unit's copies."""
    units = torch.arange(target // unit) % (source // unit)
    index = (units[:, None] * unit + torch.arange(unit)).flatten()
    counts = torch.bincount(index, minlength=source).to(torch.float64)
    copies = IndexMap(index, torch.ones(target, dtype=torch.float64), source)
    return SpaceMap(copies, IndexMap(index, 1 / counts[index], source), copies)


def stream(source: int, target: int) -> SpaceMap:
    """The residual stream read by LayerNorm: the remainder is the mean, so mean and (up to eta^2) variance are kept."""
    copies = full_copies(source, target, MEAN)
    return SpaceMap(copies, full_copies(source, target, ZERO, source / _covered(source, target)), copies)


def normed(source: int, target: int) -> SpaceMap:
    """A norm's output: the remainder is zero. A gain's remainder meets zero and is free: the mean keeps it alive."""
    share = source / _covered(source, target)
    return SpaceMap(full_copies(source, target, ZERO), full_copies(source, target, ZERO, share), full_copies(source, target, MEAN))


def tied(source: int, target: int) -> SpaceMap:
    """A norm's output read by the grown token embedding, which counts each source entry k times: divide by k."""
    share = source / _covered(source, target)
    return SpaceMap(full_copies(source, target, ZERO, share), full_copies(source, target, ZERO), full_copies(source, target, MEAN, share))


def eta(source: int, target: int) -> float:
    """sqrt(k D_S / D_T): the gain's factor, since k of k + r/D_S copies carry the variance (growth-math, section 4)."""
    return math.sqrt(_covered(source, target) / target)


def _covered(source: int, target: int) -> int:
    """Entries that belong to full copies: k * D_S."""
    return source * (target // source)
