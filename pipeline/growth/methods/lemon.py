"""LEMON: lossless expansion of width and depth (Wang et al., ICLR 2024, arXiv:2310.07999).

| space             | E: how the large model holds it                            | R: how it reads it
 |
| residual stream   | k copies, remainder the mean (LayerNorm) or zero (RMSNorm) | full copies share
 |
| a branch's end    | the same, where a norm stands between it and the stream    | (by that norm)
 |
| norm's output     | k copies, remainder zero                                   | full copies share, remainder free
 |
| heads, MLP units  | circular copies of whole units                             | copies share equally
 |

From 2 to 3 (growth-math, section 4), step by step, and why each rule is what it is:

* The stream x = (3, 1) is kept as x* = (3, 1, 2). The remainder is the **mean**, because LayerNorm subtracts the mean:
  of (3, 1, 2) it is still 2, and the third entry contributes nothing to the variance. RMSNorm subtracts nothing, so
  there the remainder is **zero**.
* The variance falls from 1 to 2/3, by eta^2 = k D_S / D_T. The gain takes eta (equation 4), the epsilon eta^2: then the
  norm gives out (y_1, y_2, 0), the small model's numbers and a **zero**.
* A weight that reads the norm's output finds a zero in the third entry: its third column is free. It gets **noise**, or
  what grew there would receive no gradient of its own. Where an entry has several copies the noise must cancel over
  them (equation 2).
* What a branch adds to the stream is written by the rows E W, the third row the mean of the others. So the stream's
  third entry stays the mean of the first two, and the next norm finds what it needs.

Units that no norm mixes (heads, MLP units) may be copied in any number, so that no mean is needed. New layers stand
directly behind the layer they came from and add nothing to the stream at step 0 (section 6).
"""

from typing import Literal

import torch
from pydantic import Field, field_validator

from pipeline.growth import conditions, interpolation, layer_lists, maps
from pipeline.growth.attention import attention_maps
from pipeline.growth.maps import Maps, SpaceMap
from pipeline.growth.method import GrowthContext, LayerOrigin, Method, MethodOptions, Term, copies_of, repeated, stacked
from pipeline.models.architecture import Architecture, Space

PLACES = {
    "zero": ("even", "top"),
    "cancel": ("even", "top"),
    "copy": ("even", "top", "stack", "last"),
    "random": ("even", "top", "last"),
}
"""By the depth, where new layers may stand, lists aside."""


class LemonOptions(MethodOptions):
    depth: Literal["zero", "cancel", "copy", "random"] = Field(
        "zero",
        description="what new layers add: zero; noise that cancels over the copies it reads; or, not losslessly, what "
        "the layer that they copy adds, or what layers of a new model do",
    )
    placement: Literal["even", "top", "stack", "last"] | str = Field(
        "even",
        description="where new layers stand: spread evenly, or doubling the topmost layers; of depth copy also all "
        "layers once more on top of one another, or the last one so often; of depth random last: on top of all; or a "
        f"list of the layers from which all come, such as {layer_lists.EXAMPLE}, of depth copy in any order",
    )
    noise: float = Field(1.0, ge=0, allow_inf_nan=False, description="scale of the symmetry-breaking noise")

    @field_validator("placement")
    @classmethod
    def _is_a_place(cls, value: str) -> str:
        if value not in PLACES["copy"] and layer_lists.parse(value) is None:
            raise ValueError(f"must be {', '.join(PLACES['copy'])} or a list of layers such as {layer_lists.EXAMPLE}")
        return value

    @property
    def listed(self) -> list[int] | None:
        """The layers from which all come, where a list says so."""
        return layer_lists.parse(self.placement)


class Lemon(Method):
    name = "lemon"
    summary = "lossless in width and depth, with noise that separates copies"
    Options = LemonOptions

    def refusals(self, source: Architecture, target: Architecture, options: LemonOptions) -> list[str]:
        return conditions.impossible(source, target, fresh_layers=options.depth == "random") or (
            conditions.inexact(source, target)
            + _too_deep(source, target, options)
            + _misplaced(source, target, options)
            + (conditions.uncancelled(source, target) if options.depth == "cancel" else [])
        )

    def lossy(self, source: Architecture, target: Architecture, options: LemonOptions) -> list[str]:
        reasons = {"copy": conditions.deeper, "random": conditions.begun_afresh}.get(options.depth)
        return conditions.interpolated(source, target) + (reasons(source, target) if reasons else [])

    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        eta = maps.residual(source.residual.size, target.residual.size, target.rms).eta
        heads = attention_maps(source, target, lambda before, after: torch.arange(after) % before, eta)
        return Maps(
            {
                name: heads[name] if name in heads else space_map(source.spaces[name], space, target.rms)
                for name, space in target.spaces.items()
            }
        )

    def stack_layers(self, source: int, target: int, options: LemonOptions) -> tuple[LayerOrigin, ...]:
        """New layers stand directly behind their origin: `top` doubles the topmost `target - source` layers (LEMON's
        released recipe), `even` spreads them. Copies may also `stack` round and round (StackBERT), or repeat the
        `last` layer, behind which fresh ones may stand too; or a list says all origins. Without a layer all are
        fresh."""
        if not source:
            return (LayerOrigin((), fresh=True),) * target
        origins = (
            options.listed
            or {
                "even": repeated(source, target),
                "top": [layer for layer in range(source) for _ in range(1 + (layer >= 2 * source - target))],
                "stack": stacked(source, target),
                "last": [min(index, source - 1) for index in range(target)],
            }[options.placement]
        )
        if options.depth == "copy":
            return copies_of(origins)
        new = [index > 0 and origins[index - 1] == origin for index, origin in enumerate(origins)]
        if options.depth == "random":
            return tuple(
                LayerOrigin((Term(origin),), fresh=is_new) for origin, is_new in zip(origins, new, strict=True)
            )
        return tuple(
            LayerOrigin((Term(origin),), is_new, is_new and options.depth == "cancel")
            for origin, is_new in zip(origins, new, strict=True)
        )

    def noise(self, options: LemonOptions) -> float:
        return options.noise


def space_map(source: Space, target: Space, rms: bool) -> SpaceMap:
    """The rule of one space, heads aside."""
    before, after = source.size, target.size
    if before == after:
        return maps.same(before)
    rules = {
        "residual": lambda: maps.residual(before, after, rms),
        "normed": lambda: maps.normed(before, after),
        "branch": lambda: maps.residual(before, after, rms),
        "tied": lambda: maps.tied(before, after, rms),
        "inner": lambda: maps.circular(before, after),
        "pooled": lambda: maps.circular(before, after),
        "mlp": lambda: maps.circular(before, after),
        "lookup": lambda: maps.appended(before, after),
        "grid": lambda: interpolation.grid(source, target),
        "pixels": lambda: interpolation.pixels(before, after),
    }
    return rules[target.kind]()


def _misplaced(source: Architecture, target: Architecture, options: LemonOptions) -> list[str]:
    if (layers := options.listed) is not None:
        if periods := [stack.period for stack in target.stacks if stack.period > 1]:
            return [
                (
                    f"placement '{options.placement}' lists layers one by one, and these repeat in a pattern of "
                    f"{periods[0]}; use placement {' or '.join(map(repr, PLACES[options.depth]))}"
                )
            ]
        before = {stack.name: stack.layers for stack in source.stacks}
        behind = options.depth != "copy"
        found = [
            layer_lists.mistake(options.placement, layers, before[stack.name], stack.layers, behind)
            for stack in target.stacks
        ]
        return [mistake for mistake in found if mistake]
    if options.placement in PLACES[options.depth]:
        return []
    only = "copy" if options.placement == "stack" else "copy' or 'random"
    return [f"placement '{options.placement}' is of depth '{only}'; use placement 'even' or 'top', or that depth"]


def _too_deep(source: Architecture, target: Architecture, options: LemonOptions) -> list[str]:
    before = {stack.name: stack for stack in source.stacks}
    return [
        f"placement 'top' at most doubles the {target.stack_prefix(stack)}layers, {before[stack.name].layers} to "
        f"{stack.layers} is more; use placement 'even'"
        for stack in target.stacks
        if options.placement == "top" and before[stack.name].blocks and stack.blocks > 2 * before[stack.name].blocks
    ]
