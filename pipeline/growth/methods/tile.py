"""Weight tiling from the middle, as ModernBERT's large model starts from the base one (arXiv:2412.13663): the source's
units stand in the middle of the target's, and go round to both sides. What reads copies reads each at full weight."""

from dataclasses import replace

import torch
from torch import Tensor

from pipeline.growth import conditions
from pipeline.growth.maps import IndexMap, Map, Maps, SpaceMap
from pipeline.growth.method import GrowthContext, LayerOrigin, Method, MethodOptions, copies_of, repeated
from pipeline.growth.methods import fpi
from pipeline.models.architecture import Architecture


class Tile(Method):
    name = "tile"
    summary = "units tiled from the middle and read at full weight, layers repeated in place (ModernBERT)"

    def refusals(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return conditions.impossible(source, target)

    def lossy(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        exact = fpi.copied(source, target, from_the_middle)
        tiled = fpi.read_otherwise(exact, _undivided(exact, target), "are read at full weight")
        return conditions.interpolated(source, target) + tiled + conditions.deeper(source, target)

    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        return _undivided(fpi.copied(source, target, from_the_middle), target)

    def stack_layers(self, source: int, target: int, options: MethodOptions) -> tuple[LayerOrigin, ...]:
        """Layer i from layer floor(i L_S / L_T)."""
        return copies_of(repeated(source, target))


def from_the_middle(before: int, after: int) -> Tensor:
    """The source unit of each target unit."""
    return (torch.arange(after) - (after - before) // 2) % before


def _undivided(maps: Maps, target: Architecture) -> Maps:
    """The spaces with readers that do not share among copies; of one tied to the embedding that is what is written.
    Queries and keys, which no weight reads, stay as larger heads need them."""
    scores = {name for each in target.attentions for name in (each.query, each.key)}
    return Maps({name: each if name in scores else _read_whole(each) for name, each in maps.items()})


def _read_whole(space: SpaceMap) -> SpaceMap:
    return replace(space, writes=_whole(space.writes), reads=_whole(space.reads), gains=_whole(space.gains))


def _whole(axis_map: Map) -> Map:
    return axis_map.all_copies() if isinstance(axis_map, IndexMap) else axis_map
