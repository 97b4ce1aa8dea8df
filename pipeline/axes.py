"""The vocabulary in which an architecture is written down: spaces, parameters, tables. No torch here.

An activation lives in a *space*; every axis of a parameter *writes* a space (rows of a weight, a bias, an
embedding), *reads* one (columns of a weight) or is the *gain* of a norm. From a table of such parameters follow
growth, FLOPs, weight-decay groups and the reasons why a growth cannot be lossless.

Names are those of published safetensors files, which are stable; `module` is the name inside transformers 5
where it differs. `{i}` is the layer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

Kind = Literal["stream", "normed", "tied", "inner", "heads", "mlp", "fixed"]
"""stream: the residual stream. normed: what a norm gives out. tied: a norm's output that the (transposed) token
embedding reads. inner: a dense layer's activation that a norm reads. heads, mlp: hidden units that may be copied.
fixed: keeps its size (vocabulary, positions, pixels, classes)."""


@dataclass(frozen=True)
class Space:
    """Where an activation lives. `unit` entries are copied as one (head_dim for heads)."""

    name: str
    size: int
    kind: Kind
    unit: int = 1

    @property
    def follows(self) -> bool:
        """Whether it has the residual stream's size by construction, so that its size goes without saying."""
        return self.kind in ("normed", "tied", "inner")


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter. For a gain, `space` is where the norm writes and `source` what it normalises."""

    space: str
    role: Literal["writes", "reads", "gain"]
    source: str = ""


@dataclass(frozen=True)
class Param:
    """One parameter: a template (`{i}` in its name) or, with `layer` set, a row of the table.

    use: `matmul` multiplies activations, `lookup` is indexed, `both` when tied, `add` is added or scales.
    per: what one use is counted by: `token`, `patch`, `sequence` or `scored` (a predicted position).
    input_grad: False where the backward pass needs no gradient of the input (the first layer of a network).
    """

    name: str
    axes: tuple[Axis, ...]
    use: Literal["matmul", "lookup", "both", "add"]
    per: str = "token"
    decay: bool = False
    input_grad: bool = True
    module: str = ""
    layer: int | None = None
    template: str = ""

    @property
    def layered(self) -> bool:
        return "{i}" in self.name

    def at(self, layer: int | None) -> "Param":
        """This template as a row: names filled in."""
        name, module = (self.name, self.module or self.name)
        if layer is not None:
            name, module = name.replace("{i}", str(layer)), module.replace("{i}", str(layer))
        return replace(self, name=name, module=module, layer=layer, template=self.name)

    def writes(self, space: str) -> bool:
        return any(axis.space == space and axis.role != "reads" for axis in self.axes)


@dataclass(frozen=True)
class Table:
    """An architecture at given sizes.

    `aliases`: tied name -> the row that owns it. `attention`: the space whose queries and keys are multiplied in
    every layer. `eps`: the key of the norms' epsilon in the model's config.
    """

    family: str
    spaces: dict[str, Space]
    layers: int
    params: tuple[Param, ...]
    attention: str
    eps: str
    aliases: dict[str, str] = field(default_factory=dict)

    def rows(self) -> Iterator[Param]:
        """Every parameter, layer by layer, templates filled in."""
        for param in self.params:
            if not param.layered:
                yield param.at(None)
        for layer in range(self.layers):
            for param in self.params:
                if param.layered:
                    yield param.at(layer)

    def shape(self, param: Param) -> tuple[int, ...]:
        return tuple(self.spaces[axis.space].size for axis in param.axes)

    def numel(self, param: Param) -> int:
        return math.prod(self.shape(param))

    @property
    def parameters(self) -> int:
        """How many numbers the model has, tied ones once."""
        return sum(self.numel(row) for row in self.rows())

    def post_norm(self, space: Space) -> bool:
        """Whether `space` is a residual stream that norms inside the layers write themselves (post-LN)."""
        return space.kind == "stream" and any(a.role == "gain" and a.space == space.name for p in self.params if p.layered for a in p.axes)


def spaces(*each: Space) -> dict[str, Space]:
    return {space.name: space for space in each}


def linear(name: str, reads: str, writes: str, *, per: str = "token", bias: bool = True, module: str = "") -> tuple[Param, ...]:
    """A dense layer: weight (writes, reads), decayed, and its bias."""
    module = module or name
    weight = Param(f"{name}.weight", (Axis(writes, "writes"), Axis(reads, "reads")), "matmul", per, True, module=f"{module}.weight")
    offset = Param(f"{name}.bias", (Axis(writes, "writes"),), "add", per, module=f"{module}.bias")
    return (weight, offset) if bias else (weight,)


def norm(name: str, reads: str, writes: str, *, module: str = "") -> tuple[Param, ...]:
    """A LayerNorm: gain and bias."""
    module = module or name
    return (
        Param(f"{name}.weight", (Axis(writes, "gain", reads),), "add", module=f"{module}.weight"),
        Param(f"{name}.bias", (Axis(writes, "writes"),), "add", module=f"{module}.bias"),
    )


def embedding(name: str, indexed: str, writes: str, *, tied: bool = False, decay: bool = False) -> tuple[Param, ...]:
    """A lookup table (indexed, writes); `tied` when the decoder multiplies by it as well."""
    axes = (Axis(indexed, "reads"), Axis(writes, "writes"))
    return (Param(f"{name}.weight", axes, "both" if tied else "lookup", "scored" if tied else "token", decay, module=f"{name}.weight"),)
