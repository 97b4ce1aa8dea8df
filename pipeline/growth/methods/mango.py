"""Mango: one multi-linear operator from all weights of the small model to all of the large one, as a ring of four cores
(Pan et al., NeurIPS 2023, arXiv:2310.10699).

The matrices of a layer are cut into B square slots (mango_slots.py): M1 (B, I1, O1, L1) are those of the source,
M2 (B, I2, O2, L2) those of the target, for inputs, outputs and layers, and

    M2[b2, i2, o2, l2] = sum over b1, i1, o1, l1, r1, r2, r3, r4 of
        SB[r1, b1, b2, r2] SO[r2, o1, o2, r3] SL[r3, l1, l2, r4] SI[r4, i1, i2, r1] M1[b1, i1, o1, l1]

The four cores are learned: R^2 (B^2 + O1 O2 + L1 L2 + I1 I2) numbers at rank R. A block of the target is grown by

    W2[b2, l2] = sum over r1, r2, r3, r4 of SO[r2, :, :, r3]^T W1* SI[r4, :, :, r1]
    W1*        = sum over b1, l1 of SB[r1, b1, b2, r2] SL[r3, l1, l2, r4] W1[b1, l1]

so the slots are mixed at their small size, then widened by two products for each of the R^4 places r in the ring.

What is no slot has not all four kinds of axes. It goes by the cores that it has axes for, each closed to a ring by
itself, S = sum_r S[r, :, :, r] (at rank 1 the core):

| tensor | out | in | layers |
|---|---|---|---|
| norms' gains and biases, biases, layer scales | SO (of the MLP's hidden units piece by piece) | – | SL |
| embeddings, prefix tokens, patches | SO | – | – |
| head, pooler, a head's dense layer, its norm | SO | SI | – |
| gain and bias of the norm before a tied decoder | SI (the embedding reads by SO) | – | – |

Rows of a vocabulary and of positions are appended and images interpolated, as always.

Index 0 of the ring is where the growth starts: FPI with layers stacked (SB the identity, SO circular copies, SI the
same divided by their number, SL layer l2 mod L1, or whole patterns of layers in that way); an MLP's units are copied
within their piece. Of the other indices only what leads away from 0, S[0, :, :, r], is drawn, and what leads back, or
stays away, is zero. So no other path around the ring counts at the start, the first step's gradients reach all that
leads back to 0, and from then on every entry's are nonzero.
"""

from itertools import product
from math import isqrt

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.growth import conditions
from pipeline.growth.maps import DenseMap, Maps, SpaceMap
from pipeline.growth.method import (
    GrownBlock,
    GrowthContext,
    GrowthModule,
    LayerOrigin,
    Layers,
    LearnedMethod,
    MethodOptions,
    Term,
    copies_of,
    in_pattern,
    stacked,
)
from pipeline.growth.methods import lemon, mango_slots
from pipeline.growth.methods.ligo_start import NOT_LEARNED
from pipeline.models.architecture import Architecture, Space
from pipeline.rng import derive

SPREAD = 0.02
"""Standard deviation of what is drawn."""


class MangoOptions(MethodOptions):
    rank: int = Field(1, ge=1, description="of the ring; costs its square in coefficients, its fourth power in FLOPs")


class Mango(LearnedMethod):
    name = "mango"
    summary = "a ring of four cores over slots, inputs, outputs and layers, fitted on the training loss"
    Options = MangoOptions

    def refusals(self, source: Architecture, target: Architecture, options: MangoOptions) -> list[str]:
        reasons = conditions.impossible(source, target) or mango_slots.refusals(source, target)
        return reasons or _too_large(source, target, options.rank)

    def lossy(self, source: Architecture, target: Architecture, options: MangoOptions) -> list[str]:
        return ["its maps were learned"]

    def module(self, source: Architecture, target: Architecture, context: GrowthContext) -> "MangoModule":
        return MangoModule(source, target, context)

    def term_maps(self, maps: Maps, context: GrowthContext) -> dict[str, Maps]:
        assert isinstance(context.module, MangoModule), "the module that `module` made"
        return context.module.ring_maps()


class MangoModule(nn.Module, GrowthModule):
    """cores: SB, SO, SL, SI as `slots`, `outputs`, `layers`, `inputs`, each (R, size in the source, in the target, R),
    float32. rings: (r1, r2, r3, r4). taken: what the terms of every block take: all slots of all layers, for each place
    in the ring."""

    def __init__(self, source: Architecture, target: Architecture, context: GrowthContext):
        super().__init__()
        self.source, self.target, self.rank = source, target, context.options.rank
        self.slots, self.stack = mango_slots.slots(target), target.stacks[0]
        (before,) = source.stacks
        self.origins = [
            each.origin for each in in_pattern(lambda *layers: copies_of(stacked(*layers)), before, self.stack)
        ]
        units = torch.arange(target.residual.size) % source.residual.size
        copied = nn.functional.one_hot(units, source.residual.size).T.double()
        starts = {
            "slots": torch.eye(len(self.slots)),
            "outputs": copied,
            "layers": nn.functional.one_hot(torch.tensor(self.origins), before.layers).T,
            "inputs": copied / copied.sum(1, keepdim=True),
        }
        self.cores = nn.ParameterDict(
            {name: nn.Parameter(self._core(name, start, context.seed)) for name, start in starts.items()}
        )
        self.rings = list(product(range(self.rank), repeat=4))
        self.taken = [
            (layer, _name(ring), slot.template, slot.block(source.residual.size))
            for ring, slot, layer in product(self.rings, self.slots, range(before.layers))
        ]

    def _core(self, name: str, start: Tensor, seed: int) -> Tensor:
        """(R, *start.shape, R): `start` at index 0 of the ring."""
        core = torch.zeros(self.rank, *start.shape, self.rank)
        generator = torch.Generator().manual_seed(derive(seed, "mango", name))
        core[0, :, :, 1:] = SPREAD * torch.randn(*start.shape, self.rank - 1, generator=generator)
        core[0, :, :, 0] = start
        return core

    def _closed(self, name: str) -> Tensor:
        """(source, target): a core closed to a ring by itself."""
        closed: Tensor = self.cores[name].diagonal(dim1=0, dim2=3).sum(-1)
        return closed

    def maps(self) -> Maps:
        """E and R of every space, for what is no slot."""
        written, read = (_map(self._closed(name)) for name in ("outputs", "inputs"))
        return Maps({name: self._space(space, written, read) for name, space in self.target.spaces.items()})

    def _space(self, space: Space, written: DenseMap, read: DenseMap) -> SpaceMap:
        if space.kind == "mlp":
            pieces = space.size // self.target.residual.size
            written, read = (DenseMap(torch.block_diag(*[each.matrix] * pieces)) for each in (written, read))
        elif space.kind in NOT_LEARNED or space.size != self.target.residual.size:
            return lemon.space_map(self.source.spaces[space.name], space, self.target.rms)
        return SpaceMap(read, written, read) if space.kind == "tied" else SpaceMap(written, read, written)

    def ring_maps(self) -> dict[str, Maps]:
        """SO and SI at every place in the ring, by which slots are widened."""
        pairs, width = list(product(range(self.rank), repeat=2)), self.target.residual.name
        written, read = (
            {(r, s): _map(self.cores[name][r, :, :, s]) for r, s in pairs} for name in ("outputs", "inputs")
        )
        return {
            _name((r1, r2, r3, r4)): Maps({width: SpaceMap(written[r2, r3], read[r4, r1], written[r2, r3])})
            for r1, r2, r3, r4 in self.rings
        }

    def layers(self) -> Layers:
        """Every matrix of a layer is made block by block, everything else is a mixture of the source's layers."""
        return {self.stack.name: tuple(self._layer(layer) for layer in range(self.stack.layers))}

    def _layer(self, layer: int) -> LayerOrigin:
        weights = self._closed("layers")[:, layer]
        mixture = tuple(Term(number, weight) for number, weight in enumerate(weights.unbind()))
        blocks: dict[str, list[GrownBlock]] = {}
        for number, slot in enumerate(self.slots):
            place, width = slot.block(self.target.residual.size), self.target.residual.name
            blocks.setdefault(slot.template, []).append(GrownBlock(place, (width, width), self._terms(number, layer)))
        return LayerOrigin(
            (Term(self.origins[layer]),),
            mixtures={param.name: mixture for param in self.target.templates(self.stack) if param.name not in blocks},
            blocks={template: tuple(each) for template, each in blocks.items()},
        )

    def _terms(self, slot: int, layer: int) -> tuple[Term, ...]:
        """SB[r1, b1, slot, r2] SL[r3, l1, layer, r4] W1[b1, l1] for all r1, r2, r3, r4, b1, l1."""
        slots = self.cores["slots"][:, :, slot].permute(0, 2, 1)[:, :, None, None, :, None]
        layers = self.cores["layers"][:, :, layer].permute(0, 2, 1)[None, None, :, :, None, :]
        coefficients = (slots * layers).flatten().unbind()
        return tuple(
            Term(number, coefficient, maps, template, block)
            for (number, maps, template, block), coefficient in zip(self.taken, coefficients, strict=True)
        )


def _too_large(source: Architecture, target: Architecture, rank: int) -> list[str]:
    """Why a rank is too large: the operator would have more coefficients than what it makes has parameters."""
    slots, width = len(mango_slots.slots(target)), source.residual.size * target.residual.size
    once = slots**2 + 2 * width + source.stacks[0].layers * target.stacks[0].layers
    if rank**2 * once <= target.parameters:
        return []
    most, found = max(1, isqrt(target.parameters // once)), f"{rank**2 * once:,} coefficients"
    return [f"rank {rank} has {found}, and the target {target.parameters:,} parameters; choose at most {most}"]


def _map(matrix: Tensor) -> DenseMap:
    """matrix: (source, target). Laid out as it will lie in a file: products of another layout have other last bits."""
    return DenseMap(matrix.T.contiguous())


def _name(ring: tuple[int, ...]) -> str:
    return "ring " + " ".join(map(str, ring))
