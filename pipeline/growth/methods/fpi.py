"""FPI, function-preserving initialisation (bert2BERT, arXiv:2110.07143): circular copies everywhere, layers stacked, no noise.

Exact where the width grows by whole multiples and the depth stays; copies then never separate.
"""

import torch
from torch import Tensor

from pipeline.growth import conditions, maps
from pipeline.growth.attention import Pick, attention
from pipeline.growth.maps import IndexMap, Maps, SpaceMap
from pipeline.growth.method import ExpansionOptions, LayerOrigin, Method, Term
from pipeline.growth.methods import lemon
from pipeline.models.architecture import Architecture, Space


def choose(source: Architecture, target: Architecture, seed: int) -> dict[str, Maps]:
    """The maps of every space."""
    return {"": copied(source, target, circular)}


def circular(before: int, after: int) -> Tensor:
    """Units round and round."""
    return torch.arange(after) % before


def copied(source: Architecture, target: Architecture, pick: Pick) -> Maps:
    """Every space copied unit by unit as `pick` says, one choice for all spaces that follow the residual stream. Groups of
    keys and values go round and round whatever `pick` says, so that every query head occurs."""
    embed = pick(source.residual.size, target.residual.size)
    heads = attention(source, target, circular if source.grouped or target.grouped else pick, eta=1.0)
    return {
        name: heads[name] if name in heads else _space(source.spaces[name], space, embed, pick)
        for name, space in target.spaces.items()
    }


def _space(source: Space, target: Space, embed: Tensor, pick: Pick) -> SpaceMap:
    if source.size == target.size:
        return maps.same(source.size)
    if target.kind == "residual" or target.follows:
        return _tied(maps.shared(embed, source.size)) if target.kind == "tied" else maps.shared(embed, source.size)
    if target.kind == "mlp":
        return maps.shared(pick(source.size, target.size), source.size)
    return lemon.space_map(source, target, rms=False)


def _tied(chosen: SpaceMap) -> SpaceMap:
    """A norm's output read by the grown token embedding, which counts each entry as often as it was copied."""
    share = IndexMap(chosen.writes.index, chosen.reads.weight, chosen.writes.source)
    return SpaceMap(share, chosen.writes, share)


def stacked(source: int, target: int, options: ExpansionOptions) -> tuple[LayerOrigin, ...]:
    """Target layer i is source layer i mod L_S."""
    return tuple(LayerOrigin((Term(index % source),)) for index in range(target))


def lossy(source: Architecture, target: Architecture) -> list[str]:
    return (
        conditions.interpolated(source, target) + conditions.wider(source, target) + conditions.deeper(source, target)
    )


METHOD = Method("fpi", choose, stacked, conditions.impossible, lossy)
