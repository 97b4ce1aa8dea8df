"""How an attention grows: whole heads, groups of keys and values, and the size of a head, in any combination
(growth-math, section 5).

Target group j takes keys and values of source group g(j). Its query heads are drawn from that group's, round and
round, continuing from one copy of the group to the next; W_O divides by how often each head occurs.
A larger head holds k_d = d_T // d_S copies of each query and key entry; queries carry sqrt(d_T / d_S) / k_d, because
the scores are divided by sqrt(d_T) (equation 5). Values fill a head circularly.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.growth.maps import ZERO, IndexMap, SpaceMap, copies, full_copies
from pipeline.models.architecture import Architecture, Attention

Pick = Callable[[int, int], Tensor]
"""(source units, target units) -> the source unit of each target unit."""


def attention_maps(source: Architecture, target: Architecture, pick: Pick, eta: float) -> dict[str, SpaceMap]:
    """The maps of the four spaces of every attention. eta: the norms' factor, which queries and keys need when a norm
    that does not grow shares its epsilon with them (growth-math, section 4)."""
    maps: dict[str, SpaceMap] = {}
    for attention in target.attentions:
        maps |= _attention(attention, source, target, pick, eta if attention.qk_norm else 1.0)
    return maps


def _attention(
    names: Attention, source: Architecture, target: Architecture, pick: Pick, scale: float
) -> dict[str, SpaceMap]:
    small, large = source.spaces, target.spaces
    groups = pick(small[names.key].count, large[names.key].count)
    heads = _heads(groups, small[names.query].count, small[names.key].count, large[names.query].count)
    before, after = small[names.query].unit, large[names.query].unit
    query, key = _query(before, after), full_copies(before, after, ZERO)
    return {
        names.query: _query_map(heads, query, math.sqrt(before / after), scale, small[names.query].size),
        names.key: _key_map(groups, key, scale, small[names.key].size),
        names.value: _value_map(groups, before, after, small[names.value].size),
        names.context: _value_map(heads, before, after, small[names.context].size),
    }


def lost_heads(attention: Attention, source: Architecture, target: Architecture, groups: Tensor) -> int:
    """How many source query heads would occur nowhere in the target. groups: the source group of each target group."""
    before, after = source.spaces[attention.query].count, target.spaces[attention.query].count
    return before - len(_heads(groups, before, source.spaces[attention.key].count, after).unique())


def _heads(groups: Tensor, heads: int, source_groups: int, target_heads: int) -> Tensor:
    """The source query head of each target query head."""
    per_source_group, per_target_group = heads // source_groups, target_heads // len(groups)
    drawn = dict.fromkeys(range(source_groups), 0)
    origins = []
    for group in groups.tolist():
        origins += [group * per_source_group + (drawn[group] + n) % per_source_group for n in range(per_target_group)]
        drawn[group] += per_target_group
    return torch.tensor(origins)


def _query(before: int, after: int) -> IndexMap:
    """One head: k_d copies times sqrt(d_T / d_S) / k_d, the remainder zero."""
    return full_copies(before, after, ZERO, math.sqrt(after / before) / (after // before))


def _spread(units: Tensor, inside: IndexMap, size: int) -> IndexMap:
    """A map of one unit's entries, for every target unit that copies source unit `units[t]`."""
    index = torch.where(inside.index == ZERO, ZERO, units[:, None] * inside.source + inside.index)
    return IndexMap(index.flatten(), inside.weight.repeat(len(units)), size)


def _query_map(units: Tensor, inside: IndexMap, gradient: float, scale: float, size: int) -> SpaceMap:
    """Queries. Their R is what their gradient does: `gradient` per copy, shared among the copies of a head."""
    counts = torch.bincount(units).to(torch.float64)[units].repeat_interleave(len(inside.index))
    written = _spread(units, inside, size).scaled(scale)
    read = IndexMap(written.index, gradient / counts / scale, size)
    return SpaceMap(written, read, written)


def _key_map(units: Tensor, inside: IndexMap, scale: float, size: int) -> SpaceMap:
    """Keys. Where heads grow, the queries see of each target head only the sums over the copies of its entries."""
    copies_per_head = len(inside.index) // inside.source
    counts = torch.bincount(units).to(torch.float64)[units].repeat_interleave(len(inside.index)) * copies_per_head
    written = _spread(units, inside, size).scaled(scale)
    grows = len(inside.index) > inside.source
    queries = _spread(torch.arange(len(units)), inside, len(units) * inside.source) if grows else None
    return SpaceMap(written, IndexMap(written.index, 1 / counts / scale, size), written, query_null_space=queries)


def _value_map(units: Tensor, before: int, after: int, size: int) -> SpaceMap:
    """Values and the heads' outputs: whole units, their entries circular inside."""
    inside = copies(torch.arange(after) % before, before)
    written = _spread(units, inside, size)
    counts = torch.bincount(written.index, minlength=size).to(torch.float64)
    return SpaceMap(written, IndexMap(written.index, 1 / counts[written.index], size), written)
