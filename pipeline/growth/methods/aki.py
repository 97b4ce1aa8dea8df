"""AKI, advanced knowledge initialisation (bert2BERT, arXiv:2110.07143): a layer's own units, and for its new units
those of the next layer. Not function-preserving; what is no layer grows as in FPI."""

import torch

from pipeline.growth import conditions
from pipeline.growth.maps import IndexMap, Maps, SpaceMap
from pipeline.growth.method import GrowthContext, LayerOrigin, Method, MethodOptions, Term, stacked
from pipeline.growth.methods import fpi
from pipeline.models.architecture import Architecture

OWN, NEXT = "own units", "next layer's units"
"""Names of the maps by which a layer's two terms are grown."""


class Aki(Method):
    name = "aki"
    summary = "new units come from the next layer, layers stacked (bert2BERT)"

    def refusals(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return conditions.impossible(source, target)

    def lossy(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        grown = any(
            space.kind not in conditions.NOT_COPIED and space.size > source.spaces[name].size
            for name, space in target.spaces.items()
        )
        mixed = ["new units come from the next layer"] if grown else []
        return conditions.interpolated(source, target) + mixed + conditions.deeper(source, target)

    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        return fpi.copied(source, target, fpi.circular)

    def term_maps(self, maps: Maps, context: GrowthContext) -> dict[str, Maps]:
        return {
            OWN: Maps({name: _rows_of(space, old=True) for name, space in maps.items()}),
            NEXT: Maps({name: _rows_of(space, old=False) for name, space in maps.items()}),
        }

    def stack_layers(self, source: int, target: int, options: MethodOptions) -> tuple[LayerOrigin, ...]:
        """Stacked, each with the layer above it; the last one has none and is its own."""
        return tuple(
            LayerOrigin((Term(base, maps=OWN), Term(min(base + 1, source - 1), maps=NEXT)))
            for base in stacked(source, target)
        )


def _rows_of(space: SpaceMap, old: bool) -> SpaceMap:
    """FPI's map with the rows of the old units only, or of the new ones only. Columns are read as in FPI."""
    if not isinstance(space.writes, IndexMap) or not isinstance(space.gains, IndexMap):
        return space
    is_old = torch.arange(len(space.writes.index)) < space.writes.source
    kept = is_old if old else ~is_old
    return SpaceMap(space.writes.only(kept), space.reads, space.gains.only(kept))
