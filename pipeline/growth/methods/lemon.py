"""LEMON: lossless expansion of width and depth (Wang et al., ICLR 2024, arXiv:2310.07999).

| space             | E: how the large model holds it                            | R: how it reads it                    |
| residual stream   | k copies, remainder the mean (LayerNorm) or zero (RMSNorm) | full copies share                     |
| norm's output     | k copies, remainder zero                                   | full copies share, remainder free     |
| heads, MLP units  | circular copies of whole units                             | copies share equally                  |
"""

import torch

from pipeline.errors import UserError
from pipeline.growth import conditions, interpolation, maps
from pipeline.growth.attention import attention
from pipeline.growth.maps import Maps, SpaceMap
from pipeline.growth.method import ExpansionOptions, LayerOrigin, Method, Term
from pipeline.models.architecture import Architecture, Space


def choose(source: Architecture, target: Architecture, seed: int) -> dict[str, Maps]:
    """The maps of every space."""
    residual = maps.residual(source.residual.size, target.residual.size, target.rms)
    heads = attention(source, target, lambda before, after: torch.arange(after) % before, residual.eta)
    return {
        "": {
            name: heads[name] if name in heads else space_map(source.spaces[name], space, target.rms)
            for name, space in target.spaces.items()
        }
    }


def space_map(source: Space, target: Space, rms: bool) -> SpaceMap:
    """The rule of one space, heads aside."""
    before, after = source.size, target.size
    if before == after:
        return maps.same(before)
    rules = {
        "residual": lambda: maps.residual(before, after, rms),
        "normed": lambda: maps.normed(before, after),
        "tied": lambda: maps.tied(before, after, rms),
        "inner": lambda: maps.circular(before, after),
        "pooled": lambda: maps.circular(before, after),
        "mlp": lambda: maps.circular(before, after),
        "table": lambda: maps.appended(before, after),
        "grid": lambda: interpolation.grid(source, target),
        "pixels": lambda: interpolation.pixels(before, after),
    }
    return rules[target.kind]()


def layers(source: int, target: int, options: ExpansionOptions) -> tuple[LayerOrigin, ...]:
    """New layers stand directly behind their origin: `top` doubles the topmost `target - source` layers (LEMON's released
    recipe), `even` spreads them. Raises UserError when `top` would need more than a doubling."""
    if options.placement == "top":
        if target > 2 * source:
            raise UserError(
                f"placement 'top' at most doubles the layers, {source} to {target} is more; use placement 'even'"
            )
        origins = [layer for layer in range(source) for _ in range(1 + (layer >= 2 * source - target))]
    else:
        origins = [index * source // target for index in range(target)]
    return tuple(
        LayerOrigin((Term(origin),), index > 0 and origins[index - 1] == origin) for index, origin in enumerate(origins)
    )


def refusals(source: Architecture, target: Architecture) -> list[str]:
    return conditions.impossible(source, target) or conditions.inexact(source, target)


METHOD = Method("lemon", choose, layers, refusals, conditions.interpolated, noise=True)
