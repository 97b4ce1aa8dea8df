"""LiGO: learned linear growth operators (Wang et al., ICLR 2023, arXiv:2303.00980).

    W*_l = B_out ( sum_j w[l, j] W_j ) B_in^T       (Algorithm 1, with width and depth in one line)

Every space has a matrix B, learned; every tensor of a layer a row of weights over the source's layers, learned, for its
weight and its bias apart. What is learned starts as ligo_start.py says.

| space | B |
|---|---|
| residual stream, what norms give out | one for all |
| queries, keys, values, MLP units, the dense layer of a head | one for each |
| output of the heads | that of the values |
| vocabulary, positions, patches | not learned: rows are appended, images interpolated |

`maps: tied` is the paper's: R = E = B, the identity on top of a part that is learned. A source unit is then read at
full weight besides its copies, so the result never computes the source's function once the MLP grows. `maps: untied`
makes R a parameter of its own, started as E (E^T E)^-1, which shares what is read among copies; a tied decoder's norm
takes that part. Under rotary positions, and where groups of heads share keys and values, B mixes whole heads.

`variant: shared` has one matrix for all layers (the paper's Algorithm 1), `per_layer` one for each target layer inside
the heads and the MLP (the released code's).
"""

from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from pipeline.growth import conditions
from pipeline.growth.maps import LayerKey, Maps, SpaceMap
from pipeline.growth.method import GrowthContext, GrowthModule, LayerOrigin, Layers, LearnedMethod, MethodOptions, Term
from pipeline.growth.methods import ligo_start
from pipeline.growth.methods.lemon import Lemon
from pipeline.models.architecture import Architecture, LayerStack, ParamSpec

PER_LAYER = ("query", "key", "value", "context", "mlp")
"""Kinds of spaces that no layer shares with another."""


class LigoOptions(MethodOptions):
    maps: Literal["tied", "untied"] = Field(
        "untied", description="whether what is read (R) goes by the matrix that writes (E), as in the paper"
    )
    variant: Literal["shared", "per_layer"] = Field(
        "shared", description="one matrix per space for all layers, or for each target layer"
    )
    width_init: Literal["lossless", "rand", "rand-eta", "sel"] = Field(
        "lossless", description="where the matrices start: LEMON's maps, means (as published), means with eta, copies"
    )
    depth_init: Literal["stack", "interleave"] = Field(
        "stack", description="where the mixture of layers starts; lossless: LEMON's layers"
    )
    noise: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="lossless: scale of LEMON's noise, which is not learned"
    )


class Ligo(LearnedMethod):
    name = "ligo"
    summary = "matrices and mixtures of layers, fitted on the training loss"
    Options = LigoOptions

    def refusals(self, source: Architecture, target: Architecture, options: LigoOptions) -> list[str]:
        reasons = conditions.impossible(source, target)
        if options.width_init == "lossless":
            tied = ["width_init 'lossless' needs maps 'untied': as the paper ties them, nothing can be lossless"]
            reasons += (tied if options.maps == "tied" else []) + (conditions.inexact(source, target))
        return reasons

    def lossy(self, source: Architecture, target: Architecture, options: LigoOptions) -> list[str]:
        return ["its maps were learned"]

    def module(self, source: Architecture, target: Architecture, context: GrowthContext) -> "LigoModule":
        return LigoModule(source, target, context)

    def noise(self, options: LigoOptions) -> float:
        return options.noise if options.width_init == "lossless" else 0.0

    def noise_maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps | None:
        return Lemon().maps(source, target, context) if context.options.width_init == "lossless" else None


class LigoModule(nn.Module, GrowthModule):
    """The coefficients, float32. matrices: the learned part of every E and R, by name, of a layer's own by name and
    layer. mixtures: (layers of the target, of the source) for every tensor of a layer, by template with : for dots."""

    def __init__(self, source: Architecture, target: Architecture, context: GrowthContext):
        super().__init__()
        self.source, self.target, self.options = source, target, context.options
        self.start = ligo_start.start(source, target, context)
        self.matrices, self.mixtures = nn.ParameterDict(), nn.ParameterDict()
        for name, matrix in self.start.matrices.items():
            for key in self._keys(name):
                self.matrices[key] = nn.Parameter(matrix.learned.float())
        for stack in target.stacks:
            for param in target.templates(stack):
                mixture = ligo_start.mixture(source, target, stack, param, context)
                self.mixtures[_key(param)] = nn.Parameter(mixture.float())

    def _keys(self, name: str) -> list[str]:
        """The parameters of one matrix: one, or one for each layer of each stack."""
        if not self._by_layer(name):
            return [name]
        return [_of_layer(name, stack.name, layer) for stack in self.target.stacks for layer in range(stack.layers)]

    def _by_layer(self, name: str) -> bool:
        return self.options.variant == "per_layer" and self.target.spaces[name.split()[0]].kind in PER_LAYER

    def maps(self) -> Maps:
        """E and R of every space, differentiable."""
        shared = {name: self._space(name) for name in self.target.spaces}
        own = [
            name for name, sides in self.start.sides.items() if any(self._by_layer(s.matrix) for s in sides.values())
        ]
        layers = [(stack.name, layer) for stack in self.target.stacks for layer in range(stack.layers)] if own else []
        return Maps(shared, {key: {name: self._space(name, key) for name in own} for key in layers})

    def _space(self, name: str, layer: LayerKey | None = None) -> SpaceMap:
        """A space's map in a layer; outside of layers, where nothing reads it, that of the first."""
        used = {side.matrix for side in self.start.sides.get(name, {}).values()}
        return self.start.space(name, {matrix: self._whole(matrix, layer) for matrix in used})

    def _whole(self, name: str, layer: LayerKey | None) -> Tensor:
        place = layer or (self.target.stacks[0].name, 0)
        key = _of_layer(name, *place) if self._by_layer(name) else name
        return self.start.matrices[name].whole(self.matrices[key])

    def layers(self) -> Layers:
        """Every tensor of a layer is a mixture of those of all source layers, differentiable."""
        return {
            stack.name: tuple(self._layer(stack, layer) for layer in range(stack.layers))
            for stack in self.target.stacks
        }

    def _layer(self, stack: LayerStack, layer: int) -> LayerOrigin:
        mixtures = {
            str(param.template or param.name): tuple(
                Term(j, c) for j, c in enumerate(self.mixtures[_key(param)][layer])
            )
            for param in self.target.templates(stack)
        }
        return replace(ligo_start.origin(self.source, stack, layer, self.options), mixtures=mixtures)


def _key(param: ParamSpec) -> str:
    """A template as a name that torch takes for a parameter."""
    return (param.template or param.name).replace(".", ":")


def _of_layer(name: str, stack: str, layer: int) -> str:
    return f"{name} of {stack.replace('.', ':')} {layer}"
