"""The vocabulary in which an architecture is written down: spaces, parameters, stacks of layers. No torch here.

An activation lives in a *space*; every axis of a parameter *writes* a space (rows of a weight, a bias, an
embedding), *reads* one (columns of a weight) or is the *gain* of a norm. From a list of such parameters follow
growth, FLOPs, weight-decay groups and the reasons why a growth cannot be lossless.

Names are those of published safetensors files, which are stable; `module` is the name inside transformers 5
where it differs. `{i}` is the layer.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pipeline.optim.parameter_groups import ParameterKind

Kind = Literal[
    "residual",
    "normed",
    "branch",
    "tied",
    "inner",
    "pooled",
    "query",
    "key",
    "value",
    "context",
    "mlp",
    "lookup",
    "grid",
    "pixels",
    "fixed",
    "number",
]
"""residual: the residual stream, which all stacks of layers share. normed: the output of a norm. branch: what a
branch ends in before the norm at its end, which writes the residual stream. tied: the output of a norm that the
(transposed) token embedding reads. inner: a dense layer's activation that a norm reads. pooled: a dense layer's
activation, as wide as the stream, that the model gives out or a classifier reads. query, key, value: an attention's
projections, heads of `unit` entries; context: its output, heads like the query's. mlp: hidden units that may be copied.
lookup: rows that are looked up, so that more may be appended (vocabulary, positions). grid: positions of image patches
behind `prefix` other tokens. pixels: a side of a patch. fixed: keeps its size. number: a single number at each
position, for which what the model gives out has no axis."""

UNNAMED = ("query", "key", "value", "context", "fixed", "number")
"""Kinds of spaces whose sizes go by other names, or stay."""

Role = Literal["writes", "reads", "gain", "scales"]
Use = Literal["matmul", "lookup", "both", "add"]


@dataclass(frozen=True)
class Space:
    """Where an activation lives. `unit` entries are copied as one (head_dim for heads)."""

    name: str
    size: int
    kind: Kind
    unit: int = 1
    prefix: int = 0

    @property
    def count(self) -> int:
        """How many units it has: heads, or single entries."""
        return self.size // self.unit

    @property
    def tied_to_hidden_size(self) -> bool:
        """Whether it has the residual stream's size by construction, so that its size goes without saying."""
        return self.kind in ("normed", "branch", "tied", "inner", "pooled")


@dataclass(frozen=True)
class Attention:
    """The spaces of one attention, the same in every layer of its stack.

    rope: positions turn pairs of entries, so head_dim is fixed. qk_norm: a norm over head_dim, which shares the
    model's epsilon, reads queries and keys. query_positions, key_positions: what queries and keys are counted by
    (two different ones where a decoder looks at an encoder).
    """

    query: str = "query"
    key: str = "key"
    value: str = "value"
    context: str = "context"
    rope: bool = False
    qk_norm: bool = False
    query_positions: str = "token"
    key_positions: str = "token"


@dataclass(frozen=True)
class LayerStack:
    """Layers that stand on one another (an encoder, a decoder).

    name: what the templates of its parameters name it by. attentions: one in most models, two where a decoder also
    looks at an encoder. period: layers repeat in a pattern of so many layers (a window, say, in all but every third),
    beginning at the first layer; a growth keeps it.
    """

    name: str
    layers: int
    attentions: tuple[Attention, ...] = (Attention(),)
    period: int = 1

    @property
    def blocks(self) -> int:
        """How many times the whole pattern occurs."""
        return self.layers // self.period


@dataclass(frozen=True)
class NormEpsilon:
    """The epsilon of a model's norms. key: where the model's config holds it; None where it is a constant."""

    value: float
    key: str | None = None


@dataclass(frozen=True)
class Axis:
    """One axis of a parameter: the space it touches, or several behind one another (fused projections).

    writes, reads: rows and columns of a weight. gain: of a norm. scales: a layer scale, which multiplies what is
    written to the space. source: of a norm's gain and bias, the space that the norm reads.
    """

    spaces: tuple[str, ...]
    role: Role
    source: str | None = None


def writes(*spaces: str) -> Axis:
    return Axis(spaces, "writes")


def reads(*spaces: str) -> Axis:
    return Axis(spaces, "reads")


EVERY_LAYER, FIRST_LAYER, LATER_LAYERS = range(2**31), range(1), range(1, 2**31)
"""Numbers of layers, whatever the stack's height."""


@dataclass(frozen=True)
class ParamSpec:
    """One parameter: a template (`{i}` in its name) or, with `layer` set, the parameter of one layer.

    use: `matmul` multiplies activations, `lookup` is indexed, `both` when tied, `add` is added or scales.
    counted_per: what one use is counted by: `token`, `patch`, `sequence` or `scored` (a predicted position).
    input_grad: False where the backward pass needs no gradient of the input (the first layer of a network).
    module: its name inside the model where that is another. template: the name that `at` filled in.
    fresh: how a new model starts it: `normal` with `std` times the config's initializer_range, or a constant.
    norm: gain or bias of a norm. scaled_by: the layer scale that multiplies what it writes.
    stack: of a layered template, the stack of layers that it is repeated in. layers: those of its layers that have it;
    where layers differ in what a parameter reads, it is listed once for each kind, under one name. offset, scale: the
    model computes with scale * (stored + offset), and that is what grows; `fresh` is of stored + offset, gradients are
    of what is stored.
    """

    name: str
    axes: tuple[Axis, ...]
    use: Use
    counted_per: str = "token"
    decay: bool = False
    input_grad: bool = True
    module: str | None = None
    layer: int | None = None
    template: str | None = None
    fresh: Literal["normal", "zeros", "ones"] = "zeros"
    std: float = 1.0
    norm: bool = False
    scaled_by: str | None = None
    stack: str = "layers"
    layers: range = EVERY_LAYER
    offset: float = 0.0
    scale: float = 1.0

    @property
    def module_name(self) -> str:
        """Its name inside the model."""
        return self.module or self.name

    @property
    def layered(self) -> bool:
        return "{i}" in self.name

    @property
    def kind(self) -> ParameterKind:
        """What it is to the optimizer, by its place, its axes and its use."""
        if len(self.axes) == 1:
            return "vectors"
        if self.use != "matmul" or not self.input_grad:
            return "embeddings"
        return "hidden" if self.layered or self.layer is not None else "head"

    def at(self, layer: int | None) -> "ParamSpec":
        """The parameter that this template is in a layer (None: in no layer)."""
        return replace(
            self,
            name=in_layer(self.name, layer),
            module=in_layer(self.module_name, layer),
            layer=layer,
            template=self.name,
        )

    def times(self, space: str, role: Role) -> int:
        """How often its axes have a space in this role: twice where both halves of a gated MLP are fused."""
        return sum(axis.spaces.count(space) for axis in self.axes if axis.role == role)

    def touches(self, space: str, *roles: str) -> bool:
        return any(space in axis.spaces and axis.role in roles for axis in self.axes)


@dataclass(frozen=True)
class Architecture:
    """An architecture at given sizes.

    params: templates of all parameters; those with `{i}` are repeated in the layers of their stack. rms: whether the
    norms are RMSNorms (no centring, no bias). aliases: tied name -> the parameter that owns it. outputs: what the
    model gives out, attribute -> the space of its last axis (of kind `number`: it has none). ignored: patterns of names
    that published files may hold besides (buffers, other heads). doubled: parameters that transformers 5 holds and does
    not read -> those in whose place transformers 4 reads them.
    """

    family: str
    spaces: dict[str, Space]
    stacks: tuple[LayerStack, ...]
    params: tuple[ParamSpec, ...]
    epsilon: NormEpsilon
    rms: bool = False
    aliases: dict[str, str] = field(default_factory=dict)
    doubled: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=lambda: {"logits": "vocab"})
    ignored: tuple[str, ...] = ()

    def rows(self) -> Iterator[ParamSpec]:
        """Every parameter, templates filled in: first what is in no layer, then stack by stack, layer by layer."""
        for param in self.params:
            if not param.layered:
                yield param.at(None)
        for stack in self.stacks:
            own = [param for param in self.params if param.layered and param.stack == stack.name]
            for layer in range(stack.layers):
                for param in own:
                    if layer in param.layers:
                        yield param.at(layer)

    def templates(self, stack: LayerStack) -> list[ParamSpec]:
        """The parameters that the layers of a stack have, each name once: as the last kind of layers has it."""
        own = {param.name: param for param in self.params if param.layered and param.stack == stack.name}
        return list(own.values())

    @property
    def module_names(self) -> dict[str, str]:
        """The name inside the model of every parameter and of every tied name. Where the model's code builds a head
        before the embedding that it is tied to, the two change places: what files call the embedding's the model calls
        the head's."""
        modules = {row.name: row.module_name for row in self.rows()}
        tied = {alias: owner if modules[owner] == alias else alias for alias, owner in self.aliases.items()}
        return modules | tied

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """Every attention once, stack by stack."""
        return tuple(dict.fromkeys(attention for stack in self.stacks for attention in stack.attentions))

    def shape(self, param: ParamSpec) -> tuple[int, ...]:
        return tuple(sum(self.spaces[name].size for name in axis.spaces) for axis in param.axes)

    def numel(self, param: ParamSpec) -> int:
        return math.prod(self.shape(param))

    @property
    def parameters(self) -> int:
        """How many numbers the model has, tied ones once."""
        return sum(self.numel(row) for row in self.rows())

    @property
    def residual(self) -> Space:
        """The residual stream."""
        return next(space for space in self.spaces.values() if space.kind == "residual")

    @property
    def post_norm(self) -> bool:
        """Whether norms inside the layers read the residual stream and write it themselves (post-LN)."""
        return any(param.layered for param in self._stream_gains)

    @property
    def branch_ends(self) -> bool:
        """Whether norms stand at the ends of branches, and write the residual stream what the branches add to it."""
        return any(self.ends_branch(param) for param in self.params)

    def ends_branch(self, param: ParamSpec) -> bool:
        """Whether a parameter is the gain or the bias of a norm at the end of a branch."""
        return any(axis.source is not None and self.spaces[axis.source].kind == "branch" for axis in param.axes)

    def adds_to_stream(self, param: ParamSpec) -> bool:
        """Whether a parameter is the last to write what a branch adds to the residual stream: where it is 0, nothing
        is added."""
        return self.ends_branch(param) or (not param.norm and param.touches(self.residual.name, "writes"))

    @property
    def norm_writes_stream(self) -> bool:
        """Whether any norm does, one behind the embedding say."""
        return bool(self._stream_gains)

    @property
    def _stream_gains(self) -> list[ParamSpec]:
        """The gains of the norms that read the residual stream and write it."""
        gains = [param for param in self.params if param.touches(self.residual.name, "gain")]
        return [param for param in gains if not self.ends_branch(param)]

    @property
    def grouped(self) -> bool:
        """Whether groups of heads share keys and values, in any attention."""
        return any(self.spaces[each.key].count != self.spaces[each.query].count for each in self.attentions)

    def block(self, stack: LayerStack) -> str:
        """The module of a layer of a stack, `{i}` for its number."""
        module = self.templates(stack)[0].module_name
        return module[: module.index("{i}") + 3]

    def blocks(self) -> Iterator[str]:
        """The modules of all layers, in order."""
        for stack in self.stacks:
            for layer in range(stack.layers):
                yield self.block(stack).replace("{i}", str(layer))

    def sizes(self) -> dict[str, int]:
        """The sizes that people speak of, by name. Several stacks of layers or attentions go by their own names."""
        named = {
            name: space.size
            for name, space in self.spaces.items()
            if not space.tied_to_hidden_size and space.kind not in UNNAMED
        }
        for each in self.attentions:
            prefix = self.attention_prefix(each)
            queries, keys = self.spaces[each.query], self.spaces[each.key]
            named |= {f"{prefix}heads": queries.count, f"{prefix}kv heads": keys.count}
            named |= {f"{prefix}head_dim": queries.unit}
        return named | {f"{self.stack_prefix(stack)}layers": stack.layers for stack in self.stacks}

    def layer_names(self) -> list[str]:
        """What messages call the layers, stack by stack: their numbers."""
        return [f"{self.stack_prefix(stack)}{layer}" for stack in self.stacks for layer in range(stack.layers)]

    def stack_prefix(self, stack: LayerStack) -> str:
        """What tells a stack from others in a message; nothing where there is one."""
        return f"{stack.name} " if len(self.stacks) > 1 else ""

    def attention_prefix(self, attention: Attention) -> str:
        """What tells an attention from others in a message; nothing where there is one."""
        return f"{attention.query} " if len(self.attentions) > 1 else ""


def in_layer(template: str, layer: int | None) -> str:
    """A template's name in a layer; a name in no layer stays."""
    return template if layer is None else template.replace("{i}", str(layer))


def spaces(*each: Space) -> dict[str, Space]:
    return {space.name: space for space in each}


def head_dim_of(config: Any) -> int:
    """The size of a head: what the config says of it, else the heads share the width."""
    stated: int | None = getattr(config, "head_dim", None)
    return stated or int(config.hidden_size // config.num_attention_heads)


def heads(count: int, head_dim: int, kv: int | None = None) -> tuple[Space, ...]:
    """The four spaces of an attention of `count` heads, keys and values shared among groups when `kv` is less."""
    wide, narrow = count * head_dim, (kv or count) * head_dim
    return (
        Space("query", wide, "query", head_dim),
        Space("key", narrow, "key", head_dim),
        Space("value", narrow, "value", head_dim),
        Space("context", wide, "context", head_dim),
    )
