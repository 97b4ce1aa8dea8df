"""AKI, advanced knowledge initialisation (bert2BERT, arXiv:2110.07143): a layer's own units, and for its new units those
of the next layer. Not function-preserving; what is no layer goes as in FPI."""

import torch

from pipeline.growth import conditions
from pipeline.growth.maps import IndexMap, Maps, SpaceMap
from pipeline.growth.method import ExpansionOptions, LayerOrigin, Method, Term
from pipeline.growth.methods import fpi
from pipeline.models.architecture import Architecture

NOT_UNITS = ("table", "grid", "pixels")
"""Kinds of spaces that grow by rows or pixels, which no layer owns."""


def choose(source: Architecture, target: Architecture, seed: int) -> dict[str, Maps]:
    """Three sets: FPI's (""), and for layers what comes from the layer itself ("own") and from the next one ("next")."""
    whole = fpi.choose(source, target, seed)[""]
    return {
        "": whole,
        **{part: {name: _part(chosen, part == "own") for name, chosen in whole.items()} for part in ("own", "next")},
    }


def _part(chosen: SpaceMap, own: bool) -> SpaceMap:
    """FPI's map with the rows of the old units only, or of the new ones only. Columns are read as in FPI."""
    if not isinstance(chosen.writes, IndexMap):
        return chosen
    old = torch.arange(len(chosen.writes.index)) < chosen.writes.source
    kept = old if own else ~old
    return SpaceMap(chosen.writes.only(kept), chosen.reads, chosen.gains.only(kept))


def layers(source: int, target: int, options: ExpansionOptions) -> tuple[LayerOrigin, ...]:
    """Stacked, each with the layer above it; the last one has none and is its own."""
    bases = [index % source for index in range(target)]
    return tuple(LayerOrigin((Term(base, maps="own"), Term(min(base + 1, source - 1), maps="next"))) for base in bases)


def lossy(source: Architecture, target: Architecture) -> list[str]:
    grown = any(
        space.kind not in NOT_UNITS and space.size > source.spaces[name].size for name, space in target.spaces.items()
    )
    mixed = ["new units come from the next layer"] if grown else []
    return conditions.interpolated(source, target) + mixed + conditions.deeper(source, target)


METHOD = Method("aki", choose, layers, conditions.impossible, lossy)
