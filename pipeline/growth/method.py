"""What a growth method is: its choices in W* = sum_j c_j E W_j R^T + N, and its word on whether they are lossless.

A method is one class in one file of `growth/methods/`, and one line in the registry there. It is asked twice:

* **whether** it can grow a model, by `refusals` and `lossy`, from the two architectures alone, before a source exists;
* **how**, by `maps` (E and R), `layers` (c) and `noise` (N), with a `GrowthContext`: the options, the seed, and for a
  method that declares `needs_source`, the source's weights and its activations on a probe.

What it answers becomes a `GrowthPlan`, and nobody asks the method again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import NoneType
from typing import Any, ClassVar, Protocol, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from torch import Tensor

from pipeline.growth.maps import Maps
from pipeline.models.architecture import Architecture, LayerStack, ParamSpec


class MethodOptions(BaseModel):
    """A method's own parameters. A subclass gives each a type that a single text says (float, int, bool, str, a Literal
    of texts; None besides), a default and a description; most methods have none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _none(cls, value: Any, info: ValidationInfo) -> Any:
        """A command line writes None as `none`."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        return None if value == "none" and NoneType in get_args(annotation) else value


@dataclass(frozen=True)
class ExpansionOptions:
    """What a user chooses: a method by name, its parameters, and the seed of all that is drawn."""

    method: str
    options: MethodOptions = field(default_factory=MethodOptions)
    seed: int = 0


@dataclass(frozen=True)
class Block:
    """Where a part of a tensor lies: `length` entries along `axis`, from `start` on."""

    axis: int
    start: int
    length: int

    def window(self, rows: range) -> range:
        """What it has of the tensor's `rows` (entries along the first axis), counted from its own first row."""
        if self.axis:
            return rows
        return range(max(0, rows.start - self.start), min(self.length, rows.stop - self.start))


@dataclass(frozen=True)
class Term:
    """c_j W_j: a source layer (None: the tensor is in no layer), its coefficient, and the name of the maps by which it
    is grown, one of `Method.term_maps`; None: the plan's maps. template: which source tensor W_j is; None: the target's
    own. block: the part of it that is taken; None: all."""

    layer: int | None
    coefficient: float | Tensor = 1.0
    maps: str | None = None
    template: str | None = None
    block: Block | None = None


@dataclass(frozen=True)
class GrownBlock:
    """A part of a target tensor that is a sum of its own: W*[place] = sum_j c_j E W_j R^T. spaces: for each axis of the
    tensor the space as which this part of it grows, by E where the axis writes, by R where it reads."""

    place: Block
    spaces: tuple[str, ...]
    terms: tuple[Term, ...]

    def alone(self, param: ParamSpec) -> ParamSpec:
        """The parameter that the block of `param` would be by itself."""
        axes = zip(param.axes, self.spaces, strict=True)
        return replace(param, axes=tuple(replace(axis, spaces=(space,)) for axis, space in axes))


@dataclass(frozen=True)
class LayerOrigin:
    """Where a target layer comes from.

    terms: of all its tensors but those in `mixtures` and `blocks`, by template; what `blocks` has lies side by side
    along one axis, in order, and fills the tensor. new: it adds nothing to the residual stream at step
    0. cancels: of a new layer, the matrices that write the residual stream start as noise that cancels over the copies
    they read, instead of zero (growth-math, section 6). fresh: it starts as a new model's layer would, and its terms
    say no more than behind which layer it stands; none in a model that had no layers.
    """

    terms: tuple[Term, ...]
    new: bool = False
    cancels: bool = False
    mixtures: Mapping[str, tuple[Term, ...]] = field(default_factory=dict)
    blocks: Mapping[str, tuple[GrownBlock, ...]] = field(default_factory=dict)
    fresh: bool = False

    @property
    def origin(self) -> int | None:
        """The layer in whose place it stands; None where the source has no layers."""
        return self.terms[0].layer if self.terms else None

    @property
    def continued(self) -> int | None:
        """The layer that it goes on from; None of a fresh one."""
        return None if self.fresh else self.origin


Layers = dict[str, tuple[LayerOrigin, ...]]
"""Stack of layers -> the origins of its target layers."""


def stacked(source: int, target: int) -> list[int]:
    """The source's layer for each of the target's where they stand on one another again, round and round."""
    return [layer % source for layer in range(target)]


def repeated(source: int, target: int) -> list[int]:
    """The same where each is repeated in its place."""
    return [layer * source // target for layer in range(target)]


def copies_of(layers: Iterable[int]) -> tuple[LayerOrigin, ...]:
    """Each layer from one of the source's, as it is."""
    return tuple(LayerOrigin((Term(layer),)) for layer in layers)


StackRule = Callable[[int, int], tuple[LayerOrigin, ...]]
"""(layers of a source's stack, of the target's) -> where each of the target's comes from, as its terms say."""


def in_pattern(rule: StackRule, source: LayerStack, target: LayerStack) -> tuple[LayerOrigin, ...]:
    """The origins of a stack's layers by a rule for layers, where these repeat in a pattern: the rule says of whole
    patterns where they come from, and every layer comes from the layer at its place in those
    (growth-math, section 6). Layers behind the last whole pattern go by the rule for one layer that becomes one."""
    period, blocks = source.period, rule(source.blocks, target.blocks)
    ended = rule(1, 1) if target.layers % period else ()
    return (
        *(_shifted(origin, period, place) for origin in blocks for place in range(period)),
        *(
            _shifted(origin, 1, source.blocks * period + place)
            for origin in ended
            for place in range(target.layers % period)
        ),
    )


def _shifted(origin: LayerOrigin, period: int, place: int) -> LayerOrigin:
    """One layer's origin, from that of its pattern."""
    if period == 1 and place == 0:
        return origin

    def shifted(terms: tuple[Term, ...]) -> tuple[Term, ...]:
        return tuple(term if term.layer is None else replace(term, layer=term.layer * period + place) for term in terms)

    return replace(
        origin,
        terms=shifted(origin.terms),
        mixtures={template: shifted(terms) for template, terms in origin.mixtures.items()},
        blocks={
            template: tuple(replace(block, terms=shifted(block.terms)) for block in blocks)
            for template, blocks in origin.blocks.items()
        },
    )


class SourceModel(Protocol):
    """A source that a method may look at while it decides."""

    def weight(self, name: str) -> Tensor:
        """A parameter by its published name, float32."""

    def mean_magnitude(self, space: str, stack: str, layer: int) -> Tensor:
        """The mean of |activation| of every entry of a space in a layer, on a probe: (size of the space,), float64."""


class GrowthModule(Protocol):
    """The learned part of a method, an `nn.Module` whose parameters are coefficients: of the maps, of the layers."""

    def maps(self) -> Maps:
        """Dense maps, differentiable in the parameters."""

    def layers(self) -> Layers:
        """Terms whose coefficients are differentiable in the parameters."""


@dataclass(frozen=True)
class GrowthContext:
    """What a method decides from, besides the architectures. options: of the method's own class. module: of a learned
    method, the module that is being fitted, or has been."""

    options: Any = field(default_factory=MethodOptions)
    seed: int = 0
    opened_source: SourceModel | None = None
    module: GrowthModule | None = None

    @property
    def source(self) -> SourceModel:
        """The source, for a method that `needs_source`."""
        assert self.opened_source is not None, "a method that looks at its source declares needs_source"
        return self.opened_source


class Method(ABC):
    """One growth method. `name` is what users write; `summary` is for --help; `fresh`: it takes no weight of the
    source. The `options` that it is handed are of its own class `Options`, which its signatures may name."""

    name: ClassVar[str]
    summary: ClassVar[str]
    Options: ClassVar[type[MethodOptions]] = MethodOptions
    needs_source: ClassVar[bool] = False
    fresh: ClassVar[bool] = False

    @abstractmethod
    def refusals(self, source: Architecture, target: Architecture, options: Any) -> list[str]:
        """Why it cannot grow `source` into `target` at all, or not as it promises; empty when it can."""

    @abstractmethod
    def lossy(self, source: Architecture, target: Architecture, options: Any) -> list[str]:
        """Why its result computes another function; a result without a reason is held to the gates."""

    @abstractmethod
    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        """E and R of every space."""

    def term_maps(self, maps: Maps, context: GrowthContext) -> dict[str, Maps]:
        """Further maps by the names that terms use. maps: those of `maps`."""
        return {}

    def layers(self, source: Architecture, target: Architecture, context: GrowthContext) -> Layers:
        """Which source layers make each target layer, stack by stack."""
        before = {stack.name: stack for stack in source.stacks}
        return {
            stack.name: in_pattern(partial(self.stack_layers, options=context.options), before[stack.name], stack)
            for stack in target.stacks
        }

    def stack_layers(self, source: int, target: int, options: Any) -> tuple[LayerOrigin, ...]:
        """The origins of `target` layers in a stack of `source`; by default round and round. Where layers repeat in a
        pattern it is asked about whole patterns (`in_pattern`)."""
        return copies_of(stacked(source, target))

    def noise(self, options: Any) -> float:
        """The scale s of N = s * (projected fresh initialisation); 0: no noise."""
        return 0.0

    def noise_maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps | None:
        """The maps in whose null spaces N lies, where those are not the plan's own: learned maps move, N does not."""
        return None


class LearnedMethod(Method):
    """A method whose maps and coefficients are the parameters of a module, moved by the target's own loss.

    The loop that fits them lies above growth. It asks for the module once; each step it plans with it, and the plan's
    tensors are differentiable; once fitted, it plans a last time without gradients, and that plan is like any other.
    Without the module nothing can be planned: where it starts is no growth that anybody wants.
    """

    @abstractmethod
    def module(self, source: Architecture, target: Architecture, context: GrowthContext) -> GrowthModule:
        """The module as it starts, before it is fitted."""

    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        return _given(context.module).maps()

    def layers(self, source: Architecture, target: Architecture, context: GrowthContext) -> Layers:
        return _given(context.module).layers()


def _given(module: GrowthModule | None) -> GrowthModule:
    assert module is not None, "a plan by a learned method is refused without its module"
    return module
