"""SPARKLING's width growth in the middle of a training (arXiv:2602.02472): copies on both sides of a matrix, and a
factor for what reads them that keeps the root mean square of its output, not the output.

With D' = (1 + c) D entries, c D of the source's occur twice where c <= 1, so that a sum over all of them has the mean
square of (1 - c) D + 4 c D = (1 + 3 c) D single ones: its factor is 1 / sqrt(1 + 3 c). Above that it is 1 / (1 + c),
which is that of whole copies. The optimizer's state is kept (`optimizer_state: asymmetric`), and new entries get a
warm-up of their own (`rewarm`).
"""

import math
from dataclasses import replace

import torch

from pipeline.growth import conditions
from pipeline.growth.maps import IndexMap, Map, Maps, SpaceMap
from pipeline.growth.method import GrowthContext, Method, MethodOptions
from pipeline.growth.methods import fpi
from pipeline.models.architecture import Architecture, Space


class Sparkling(Method):
    name = "sparkling"
    summary = "circular copies whose readers keep the size of their sums, layers stacked, no noise (SPARKLING)"

    def refusals(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return conditions.impossible(source, target)

    def lossy(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        exact = fpi.copied(source, target, fpi.circular)
        scaled = fpi.read_otherwise(exact, _scaled(exact, source, target), "keep the size of what reads them alone")
        wider = conditions.wider(source, target)
        return conditions.interpolated(source, target) + wider + scaled + conditions.deeper(source, target)

    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        return _scaled(fpi.copied(source, target, fpi.circular), source, target)


def fan_in(before: int, after: int) -> float:
    """The factor of what reads `before` entries as `after`."""
    more = after / before - 1
    return 1 / math.sqrt(1 + 3 * more) if more <= 1 else 1 / (1 + more)


def _scaled(maps: Maps, source: Architecture, target: Architecture) -> Maps:
    """All spaces but queries and keys, which no weight reads."""
    scores = {name for each in target.attentions for name in (each.query, each.key)}
    sizes = {name: (source.spaces[name], space) for name, space in target.spaces.items()}
    return Maps({name: each if name in scores else _read_scaled(each, *sizes[name]) for name, each in maps.items()})


def _read_scaled(space: SpaceMap, source: Space, target: Space) -> SpaceMap:
    """With that factor in the place of a division by the number of copies; of one tied to the embedding, which cannot
    have it where it reads, in what it reads."""
    if source.size == target.size or target.kind in conditions.NOT_COPIED:
        return space
    factor = fan_in(source.size, target.size)
    if target.kind == "tied":
        share = _weighted(space.writes, factor)
        return replace(space, writes=share, gains=share)
    return replace(space, reads=_weighted(space.reads, factor))


def _weighted(axis_map: Map, factor: float) -> Map:
    assert isinstance(axis_map, IndexMap), "copies"
    return replace(axis_map, weight=torch.full_like(axis_map.weight, factor))
