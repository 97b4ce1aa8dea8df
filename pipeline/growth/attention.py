"""How an attention grows: whole heads, groups of keys and values, and the size of a head, in any combination.

Target group j takes keys and values of source group g(j). Its query heads are drawn from that group's, round and
round, continuing from one copy of the group to the next; W_O divides by how often each head occurs.
A larger head holds k_d = d_T // d_S copies of each query and key entry; queries carry sqrt(d_T / d_S) / k_d, because
the scores are divided by sqrt(d_T). Values fill a head circularly.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.growth.maps import ZERO, IndexMap, Maps, SpaceMap, copies, full_copies
from pipeline.models.architecture import Architecture

Pick = Callable[[int, int], Tensor]
"""(source units, target units) -> the source unit of each target unit."""


def attention(source: Architecture, target: Architecture, pick: Pick, eta: float) -> Maps:
    """The maps of the four spaces. `eta`: the norms' factor, which queries and keys need when a norm that does not grow
    shares its epsilon with them (growth-math, section 4)."""
    names = target.attention
    small, large = source.spaces, target.spaces
    groups = pick(small[names.key].count, large[names.key].count)
    heads = _heads(groups, small[names.query].count, small[names.key].count, large[names.query].count)
    before, after = small[names.query].unit, large[names.query].unit
    scale = eta if names.qk_norm else 1.0
    query, key = _query(before, after), full_copies(before, after, ZERO)
    return {
        names.query: _written(heads, query, math.sqrt(before / after), scale, small[names.query].size),
        names.key: _key(groups, key, scale, small[names.key].size),
        names.value: _circular(groups, before, after, small[names.value].size),
        names.context: _circular(heads, before, after, small[names.context].size),
    }


def missing(source: Architecture, target: Architecture, groups: Tensor) -> int:
    """How many source query heads would occur nowhere in the target."""
    names = target.attention
    heads = _heads(
        groups, source.spaces[names.query].count, source.spaces[names.key].count, target.spaces[names.query].count
    )
    return source.spaces[names.query].count - len(heads.unique())


def _heads(groups: Tensor, heads: int, source_groups: int, target_heads: int) -> Tensor:
    """The source query head of each target query head."""
    per, each = heads // source_groups, target_heads // len(groups)
    drawn = dict.fromkeys(range(source_groups), 0)
    chosen = []
    for group in groups.tolist():
        chosen += [group * per + (drawn[group] + n) % per for n in range(each)]
        drawn[group] += each
    return torch.tensor(chosen)


def _query(before: int, after: int) -> IndexMap:
    """One head: k_d copies times sqrt(d_T / d_S) / k_d, the remainder zero."""
    return full_copies(before, after, ZERO, math.sqrt(after / before) / (after // before))


def _spread(units: Tensor, inside: IndexMap, size: int) -> IndexMap:
    """A map of one unit's entries, for every target unit that copies source unit `units[t]`."""
    index = torch.where(inside.index == ZERO, ZERO, units[:, None] * inside.source + inside.index)
    return IndexMap(index.flatten(), inside.weight.repeat(len(units)), size)


def _written(units: Tensor, inside: IndexMap, gradient: float, scale: float, size: int) -> SpaceMap:
    """Queries. Their R is what their gradient does: `gradient` per copy, shared among the copies of a head."""
    counts = torch.bincount(units).to(torch.float64)[units].repeat_interleave(len(inside.index))
    written = _spread(units, inside, size).scaled(scale)
    read = IndexMap(written.index, gradient / counts / scale, size)
    return SpaceMap(written, read, written)


def _key(units: Tensor, inside: IndexMap, scale: float, size: int) -> SpaceMap:
    """Keys. `blind`: the same copies within every target head, which is all that the queries look at."""
    counts = torch.bincount(units).to(torch.float64)[units].repeat_interleave(len(inside.index)) * (
        len(inside.index) // inside.source
    )
    written = _spread(units, inside, size).scaled(scale)
    blind = (
        _spread(torch.arange(len(units)), inside, len(units) * inside.source)
        if len(inside.index) > inside.source
        else None
    )
    return SpaceMap(written, IndexMap(written.index, 1 / counts / scale, size), written, blind=blind)


def _circular(units: Tensor, before: int, after: int, size: int) -> SpaceMap:
    """Values and what the heads give out: whole units, their entries circular inside."""
    inside = copies(torch.arange(after) % before, before)
    written = _spread(units, inside, size)
    counts = torch.bincount(written.index, minlength=size).to(torch.float64)
    return SpaceMap(written, IndexMap(written.index, 1 / counts[written.index], size), written)
