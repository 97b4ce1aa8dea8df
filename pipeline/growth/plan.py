"""Deciding, as pure data: which target tensor comes from which source tensors, and what the config must change.

Take a small model of width 2 that grows to width 3 (growth-math, section 4). Its norm has the gain g = (2.2, 1.1), and
a weight W of shape (2, 2) reads the norm's output and writes two classes. The plan of this growth says

    target   terms         shape    noise
    g        g             (3,)              a gain: its axis is grown by eta * E_g
    W        W             (2, 3)   (1,)     axis 0 writes the classes, which stay; axis 1 reads the norm's output,
                                             which grows: there is a part that nothing sees, and noise goes there

and besides them the maps of every space, and that the config's epsilon becomes eta^2 = 2/3 of what it was. That is all
that carrying it out needs: every tensor follows by the one formula

    W* = sum_j c_j E_out W_j R_in^T + N        (growth-math, equation 1)

where a `Term` is one c_j W_j, E and R come from the `Maps` of the spaces that the tensor's axes touch, and N is the
noise along `TensorPlan.noise`. Where parts of a tensor (a fused projection, pieces of an MLP) are sums of their own,
each is a `GrownBlock`. The reasons at each turn:

* a layer that continues another is one term with c = 1; a learned method mixes all layers of a stack in many terms;
* a *new* layer must add nothing to the residual stream at step 0, so what writes the stream there has no term at all:
  zero, or noise alone (section 6);
* what the layer lacks that a layer comes from (a first layer's norm, say) starts as in a new model;
* where a norm at the end of a branch writes the stream, it is its gain that is zero there (section 6);
* post-LN norms of new layers are identities, and the affine moves on to the last of the copies (section 6);
* noise is possible along an axis that reads a space that grew by copies, and on keys along the null space of the
  queries (sections 3 and 5);
* where the stream's remainder is a mean, a layer scale cannot stay beside it, and is folded into its writer (equation
  6).

A plan owns its maps: methods that draw, that look at data, or that learn are asked once, here. Execution, verification,
symmetry, preview and the optimizer state read the plan alone. No tensor of the source is read here, unless the method
says that it needs the source.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from pipeline.errors import UserError
from pipeline.growth import methods
from pipeline.growth.maps import MEAN, IndexMap, Maps, SpaceMap
from pipeline.growth.method import (
    ExpansionOptions,
    GrownBlock,
    GrowthContext,
    GrowthModule,
    LayerOrigin,
    Layers,
    LearnedMethod,
    Method,
    SourceModel,
    Term,
)
from pipeline.models.architecture import Architecture, NormEpsilon, ParamSpec, in_layer

NOISE = "noise"
"""Among the term maps: those in whose null spaces N lies, where they are not the plan's own."""


@dataclass(frozen=True)
class TensorPlan:
    """One target tensor: W* = sum_j c_j E W_j R^T + N (growth-math, equation 1).

    template: its name with `{i}` for a layer, by which terms name source tensors. origin: the source tensor in whose
    place it stands; None in a layer of a model that had none. terms: of the whole; blocks: parts side by side along one
    axis, each with terms of its own; without either every entry starts as `fill` (of what the model computes with), or
    fresh. noise: the axes along which
    N is projected. fold: the source's layer scale that is multiplied into it. note: why it has no terms.
    """

    target: str
    template: str
    origin: str | None
    terms: tuple[Term, ...]
    shape: tuple[int, ...]
    noise: tuple[int, ...] = ()
    fill: float = 0.0
    fresh: bool = False
    fold: str | None = None
    note: str | None = None
    blocks: tuple[GrownBlock, ...] = ()

    @property
    def grown(self) -> bool:
        """Whether it is made of tensors of the source."""
        return bool(self.terms or self.blocks)

    @property
    def sums(self) -> Iterator[Term]:
        """All terms, of the whole and of its blocks."""
        yield from self.terms
        for block in self.blocks:
            yield from block.terms

    def source_name(self, term: Term) -> str:
        """The source tensor of a term."""
        return in_layer(term.template or self.template, term.layer)


@dataclass(frozen=True)
class GrowthPlan:
    """The whole growth, and everything that its execution needs.

    maps: E and R of every space; term_maps: further ones by the names that terms use. layers: the origins of the
    target's layers, by stack. noise: the scale s of N. init_std: the standard deviation of the target's fresh weights
    (its config's initializer_range). config_change: what the target's config must hold. lossy: why it computes another
    function; empty when it is held to the gates. moves_norm_affines: affines of norms moved to new layers, exact up to
    O(eps).
    """

    options: ExpansionOptions
    source: Architecture
    target: Architecture
    maps: Maps
    layers: Layers
    tensors: tuple[TensorPlan, ...]
    noise: float
    init_std: float
    config_change: dict[str, float]
    lossy: tuple[str, ...] = ()
    moves_norm_affines: bool = False
    term_maps: dict[str, Maps] = field(default_factory=dict)

    @property
    def lossless(self) -> bool:
        return not self.lossy

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Before and after, by the names that people use."""
        before, after = self.source.sizes(), self.target.sizes()
        return {name: (before[name], after[name]) for name in after}

    def continued(self, stack: str) -> list[int | None]:
        """The source layer that each layer of a stack goes on from; None of one that begins afresh."""
        afresh = all(each.fresh for each in self.tensors)
        return [None if afresh else origin.continued for origin in self.layers[stack]]

    @property
    def noise_maps(self) -> Maps:
        """The maps in whose null spaces N lies."""
        return self.term_maps.get(NOISE, self.maps)

    def maps_named(self, name: str | None) -> Maps:
        """The maps by which terms are grown that name them so; None: the plan's."""
        return self.maps if name is None else self.term_maps[name]


def require_possible(source: Architecture, target: Architecture, options: ExpansionOptions) -> None:
    """Ask a method whether it can grow `source` into `target`, before a source exists. Raises UserError with every
    reason when it cannot."""
    if reasons := methods.find(options.method).refusals(source, target, options.options):
        raise UserError(f"method '{options.method}' cannot grow this model: {'; '.join(reasons)}")


def _ready(options: ExpansionOptions, module: GrowthModule | None) -> Method:
    """The method that is chosen. Raises UserError for one that has yet to be fitted."""
    method = methods.find(options.method)
    if isinstance(method, LearnedMethod) and module is None:
        raise UserError(
            f"method '{options.method}' learns its maps, and has no data to be fitted on: name them (--data "
            "CONFIG.yaml), make it a stage of a run, take the operator of an earlier fit (--operator), or choose "
            "another method"
        )
    return method


def begun_module(
    source: Architecture, target: Architecture, options: ExpansionOptions, model: SourceModel | None = None
) -> GrowthModule:
    """The module of a learned method as it starts, before it is fitted. Raises UserError as `require_possible` does."""
    require_possible(source, target, options)
    method = methods.find(options.method)
    if not isinstance(method, LearnedMethod):
        raise UserError(f"method '{options.method}' has nothing to fit; train its stage without")
    return method.module(source, target, GrowthContext(options.options, options.seed, model))


def plan_growth(
    source: Architecture,
    target: Architecture,
    options: ExpansionOptions,
    init_std: float,
    model: SourceModel | None = None,
    module: GrowthModule | None = None,
) -> GrowthPlan:
    """Decide how `source` grows into `target`. Raises UserError with every reason when the method cannot."""
    require_possible(source, target, options)
    return build_plan(source, target, options, init_std, model, module)


def build_plan(
    source: Architecture,
    target: Architecture,
    options: ExpansionOptions,
    init_std: float,
    model: SourceModel | None = None,
    module: GrowthModule | None = None,
) -> GrowthPlan:
    """The plan by a method's rules, whether they are exact for these architectures or not.

    init_std: of the target's fresh weights. model: the source, for a method that needs it. module: of a learned method.
    Raises UserError.
    """
    method = _ready(options, module)
    if method.needs_source and model is None:
        raise UserError(f"method '{options.method}' decides by the source's weights, and there are none to read yet")
    context = GrowthContext(options.options, options.seed, model, module)
    planner = Planner(source, target, method, context)
    tensors = tuple(planner.tensors())
    _require_cancelling(planner.layers, tensors)
    return GrowthPlan(
        options,
        source,
        target,
        planner.maps,
        planner.layers,
        tensors,
        planner.noise,
        init_std,
        config_change(source.epsilon, planner.maps[target.residual.name].eta),
        tuple(method.lossy(source, target, options.options)),
        target.post_norm and any(origin.new for stack in planner.layers.values() for origin in stack),
        method.term_maps(planner.maps, planner.context)
        | ({NOISE: planner.noise_maps} if planner.noise_maps is not planner.maps else {}),
    )


def _require_cancelling(layers: Layers, tensors: tuple[TensorPlan, ...]) -> None:
    """New layers whose matrices shall cancel need one that can."""
    cancels = any(origin.cancels for stack in layers.values() for origin in stack)
    if cancels and not any(tensor_plan.note and tensor_plan.noise for tensor_plan in tensors):
        raise UserError(
            "depth 'cancel' needs a tensor with a free part, and no input space grows (or noise is 0); use depth 'zero'"
        )


def config_change(epsilon: NormEpsilon, eta: float) -> dict[str, float]:
    """The variance that a grown norm sees is eta^2 times the source's, so its epsilon has to be, too (equation 4)."""
    return {epsilon.key: epsilon.value * eta**2} if epsilon.key else {}


class Planner:
    """Decides tensor by tensor."""

    def __init__(self, source: Architecture, target: Architecture, method: Method, context: GrowthContext):
        self.target, self.fresh, self.context = target, method.fresh, context
        self.maps = method.maps(source, target, context)
        self.layers = method.layers(source, target, context)
        self.noise = method.noise(context.options)
        self.noise_maps = method.noise_maps(source, target, context) or self.maps
        residual = self.maps[target.residual.name].writes
        self.folds = isinstance(residual, IndexMap) and bool((residual.index == MEAN).any())
        self.holders = _holders(source)
        self.last_norms = {stack.name: _last_norm(target.templates(stack)) for stack in target.stacks}

    def tensors(self) -> Iterator[TensorPlan]:
        for param in self.target.rows():
            yield self._tensor(param, None if param.layer is None else self.layers[param.stack][param.layer])

    def _tensor(self, param: ParamSpec, origin: LayerOrigin | None) -> TensorPlan:
        template = param.template or param.name
        tensor = TensorPlan(param.name, template, self._place(template, origin), (), self.target.shape(param))
        if self.fresh or (origin and origin.fresh):
            return replace(tensor, fresh=True)
        if origin and origin.origin not in self.holders[template]:
            return _lacking(tensor, param)
        if self._identity(param, origin):
            fill = 1.0 if param.axes[0].role == "gain" else 0.0
            return replace(tensor, fill=fill, note="new layer: its affine moves on")
        if origin and (blocks := origin.blocks.get(template)):
            return replace(tensor, blocks=blocks)
        terms, fold = self._terms(template, origin), self._fold(param, origin)
        if origin and origin.new and self.target.adds_to_stream(param):
            silent = self._silent(tensor, param, origin)
            return replace(silent, terms=terms, fold=fold) if template in origin.mixtures else silent
        return replace(tensor, terms=terms, noise=self._noise_axes(param), fold=fold)

    def _identity(self, param: ParamSpec, origin: LayerOrigin | None) -> bool:
        """Post-LN: of layers from one origin, the last one's last norm has the affine; the other norms of new layers,
        and the last norms before them, only normalise."""
        if origin is None or param.layer is None or not param.norm or not self.target.post_norm:
            return False
        behind = self.layers[param.stack][param.layer + 1 : param.layer + 2]
        followed = bool(behind) and behind[0].new
        return followed if _module(param) == self.last_norms[param.stack] else origin.new

    def _silent(self, tensor: TensorPlan, param: ParamSpec, origin: LayerOrigin) -> TensorPlan:
        """A tensor of a new layer that writes the residual stream: it adds nothing at step 0."""
        noise, is_matrix = self._noise_axes(param), len(param.axes) > 1
        if origin.cancels and noise:
            return replace(tensor, noise=noise, note="new layer: fan-outs of copies cancel")
        short = " (its input space did not grow)" if origin.cancels and is_matrix else ""
        return replace(tensor, note="new layer: zero" + short)

    def _noise_axes(self, param: ParamSpec) -> tuple[int, ...]:
        """The axes along which something may be added that the model does not compute with: one that reads a grown
        space, one that writes keys of which the queries see a part only."""
        if param.use != "matmul" or not self.noise:
            return ()
        touched = [
            (axis, label.role, self.noise_maps.at(name, param.stack, param.layer))
            for axis, label in enumerate(param.axes)
            for name in label.spaces
        ]
        return tuple(sorted({axis for axis, role, space in touched if _has_null_space(role, space)}))

    def _fold(self, param: ParamSpec, origin: LayerOrigin | None) -> str | None:
        scale = param.scaled_by or (param.template if param.axes[0].role == "scales" else None)
        return self._place(scale, origin) if scale and self.folds else None

    def _terms(self, template: str, origin: LayerOrigin | None) -> tuple[Term, ...]:
        """What a tensor is made of; layers that do not have it add nothing to it."""
        if origin is None:
            return (Term(None),)
        return tuple(
            term
            for term in origin.mixtures.get(template, origin.terms)
            if term.layer is None or term.layer in self.holders[term.template or template]
        )

    def _place(self, template: str, origin: LayerOrigin | None) -> str | None:
        """The source tensor in whose place one stands: that of the layer it comes from, where this has none that of the
        nearest layer; None where no layer of the source has one."""
        if origin is None:
            return template
        holders, layer = self.holders[template], origin.origin
        if layer is None or not holders:
            return None
        nearest = layer if layer in holders else min(holders, key=lambda each: (abs(each - layer), each))
        return in_layer(template, nearest)


def _holders(source: Architecture) -> Mapping[str, set[int]]:
    """Template -> the layers of the source that have it."""
    holders: dict[str, set[int]] = defaultdict(set)
    for row in source.rows():
        if row.layer is not None:
            holders[row.template or row.name].add(row.layer)
    return holders


def _lacking(tensor: TensorPlan, param: ParamSpec) -> TensorPlan:
    """A tensor that the layer it would come from does not have: a norm starts as one that only normalises."""
    if param.fresh == "normal" or tensor.origin is None:
        return replace(tensor, fresh=True, note="its origin has none")
    return replace(tensor, fill=param.std if param.fresh == "ones" else 0.0, note="its origin has none")


def _has_null_space(role: str, space: SpaceMap) -> bool:
    return (role == "reads" and space.free) or (role == "writes" and space.query_null_space is not None)


def _last_norm(templates: list[ParamSpec]) -> str | None:
    norms = [_module(param) for param in templates if param.norm]
    return norms[-1] if norms else None


def _module(param: ParamSpec) -> str:
    """The template of the module that a parameter belongs to."""
    return (param.template or param.name).rsplit(".", 1)[0]
