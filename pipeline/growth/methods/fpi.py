"""FPI, function-preserving initialisation (bert2BERT, arXiv:2110.07143): circular copies everywhere, layers stacked, no
noise.

Exact where the width grows by whole multiples and the depth stays; copies then never separate.
"""

import torch
from torch import Tensor

from pipeline.growth import conditions, maps
from pipeline.growth.attention import Pick, attention_maps
from pipeline.growth.maps import IndexMap, Maps, SpaceMap
from pipeline.growth.method import GrowthContext, Method, MethodOptions
from pipeline.growth.methods import lemon
from pipeline.models.architecture import Architecture, Space


class Fpi(Method):
    name = "fpi"
    summary = "circular copies, layers stacked, no noise (bert2BERT)"

    def refusals(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return conditions.impossible(source, target)

    def lossy(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return (
            conditions.interpolated(source, target)
            + conditions.wider(source, target)
            + conditions.deeper(source, target)
        )

    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        return copied(source, target, circular)


def circular(before: int, after: int) -> Tensor:
    """Units round and round."""
    return torch.arange(after) % before


def copied(source: Architecture, target: Architecture, pick: Pick) -> Maps:
    """Every space copied unit by unit as `pick` says, one choice for all spaces that have the residual stream's size.
    Groups of keys and values go round and round whatever `pick` says, so that every query head occurs."""
    hidden = pick(source.residual.size, target.residual.size)
    heads = attention_maps(source, target, circular if source.grouped or target.grouped else pick, eta=1.0)
    return Maps(
        {
            name: heads[name] if name in heads else _space(source.spaces[name], space, hidden, pick)
            for name, space in target.spaces.items()
        }
    )


def read_otherwise(exact: Maps, own: Maps, how: str) -> list[str]:
    """In words, where readers of copies do not add up to what the source's read. exact: the maps by which they do; own:
    those with other weights. how: what the readers do."""
    for name, space in own.items():
        shares = [each.reads.weight for each in (exact[name], space) if isinstance(each.reads, IndexMap)]
        if len(shares) == 2 and not torch.equal(*shares):
            return [f"copies in '{name}' {how}"]
    return []


def _space(source: Space, target: Space, hidden: Tensor, pick: Pick) -> SpaceMap:
    if source.size == target.size:
        return maps.same(source.size)
    if target.kind == "residual" or target.tied_to_hidden_size:
        return _tied(maps.shared(hidden, source.size)) if target.kind == "tied" else maps.shared(hidden, source.size)
    if target.kind == "mlp":
        return maps.shared(pick(source.size, target.size), source.size)
    return lemon.space_map(source, target, rms=False)


def _tied(copies: SpaceMap) -> SpaceMap:
    """A norm's output read by the grown token embedding, which counts each entry as often as it was copied."""
    assert isinstance(copies.writes, IndexMap) and isinstance(copies.reads, IndexMap)
    share = IndexMap(copies.writes.index, copies.reads.weight, copies.writes.source)
    return SpaceMap(share, copies.writes, share)
