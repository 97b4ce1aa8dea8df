"""Deciding, as pure data: which target tensor comes from which source tensors, and what the config must change.

No tensor is read here. A plan is printed, saved as plan.json and then carried out by `growth.engine`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from torch import Tensor

from pipeline.errors import UserError
from pipeline.growth.maps import MEAN, IndexMap, Maps
from pipeline.growth.method import ExpansionOptions, LayerOrigin, Method
from pipeline.models.architecture import Architecture, NormEpsilon, ParamSpec


@dataclass(frozen=True)
class Source:
    """One term c_j W_j of a row, and by which of the method's maps it goes."""

    name: str
    weight: float | Tensor = 1.0
    maps: str = ""


@dataclass(frozen=True)
class TensorPlan:
    """One target tensor: W* = sum_j c_j E W_j R^T + N (growth-math, equation 1).

    sources: the terms; without one every entry starts as `fill`, or fresh. noise: the axes along which N is projected.
    origin: the source tensor in whose place it stands. fold: the source's layer scale that is multiplied into it.
    """

    target: str
    sources: tuple[Source, ...]
    shape: tuple[int, ...]
    noise: tuple[int, ...] = ()
    fill: float = 0.0
    fresh: bool = False
    origin: str = ""
    fold: str = ""
    note: str = ""


@dataclass(frozen=True)
class GrowthPlan:
    """The whole growth. config_change: what the target's config must hold. sizes: before and after, by name. lossy: why it
    computes another function; empty when it is held to the gates. moved: the affines of norms moved to new layers, which is
    exact up to O(eps)."""

    options: ExpansionOptions
    layers: tuple[LayerOrigin, ...]
    rows: tuple[TensorPlan, ...]
    config_change: dict[str, float]
    sizes: dict[str, tuple[int, int]]
    lossy: tuple[str, ...] = ()
    moved: bool = False

    @property
    def lossless(self) -> bool:
        return not self.lossy

    def as_json(self) -> dict:
        return asdict(self) | {"lossless": self.lossless}


def make(source: Architecture, target: Architecture, method: Method, options: ExpansionOptions) -> GrowthPlan:
    """The plan for growing `source` into `target`. Raises UserError."""
    planner = Planner(source, target, method, options)
    before, after = source.measures(), target.measures()
    residual = planner.maps[target.residual.name]
    plan = GrowthPlan(
        options,
        planner.layers,
        tuple(planner.rows()),
        _config_change(source.epsilon, residual.eta),
        {name: (before[name], after[name]) for name in after},
        tuple(method.lossy(source, target)),
        target.post_norm and any(layer.new for layer in planner.layers),
    )
    new = [row for row in plan.rows if row.note]
    if options.depth == "cancel" and new and not any(row.noise for row in new):
        raise UserError(
            "depth 'cancel' needs a tensor with a free part, and no input space grows (or noise is 0); use depth 'zero'"
        )
    return plan


def _config_change(epsilon: NormEpsilon, eta: float) -> dict[str, float]:
    """The variance that a grown norm sees is eta^2 times the source's, so its epsilon has to be, too."""
    return {epsilon.key: epsilon.value * eta**2} if epsilon.key else {}


class Planner:
    """Decides row by row."""

    def __init__(self, source: Architecture, target: Architecture, method: Method, options: ExpansionOptions):
        self.source, self.target, self.method, self.options = source, target, method, options
        self.maps: Maps = method.maps(source, target, options.seed)[""]
        self.layers = method.layers(source.layers, target.layers, options)
        written = self.maps[target.residual.name].writes
        self.folds = isinstance(written, IndexMap) and bool((written.index == MEAN).any())
        norms = [param.name for param in target.params if param.layered and param.norm]
        self.last_norm = norms[-1].rsplit(".", 1)[0] if norms else ""

    def rows(self) -> Iterator[TensorPlan]:
        for param in self.target.rows():
            yield self._row(param, None if param.layer is None else self.layers[param.layer])

    def _row(self, param: ParamSpec, layer: LayerOrigin | None) -> TensorPlan:
        shape, origin = self.target.shape(param), _at(param.template, layer.origin if layer else None)
        if self.method.fresh:
            return TensorPlan(param.name, (), shape, fresh=True, origin=origin)
        if self._identity(param, layer):
            fill = 1.0 if param.axes[0].role == "gain" else 0.0
            return TensorPlan(param.name, (), shape, fill=fill, origin=origin, note="new layer: its affine moves on")
        if layer is not None and layer.new and not param.norm and param.touches(self.target.residual.name, "writes"):
            return self._silent(param, shape, origin)
        terms = (
            (Source(origin),)
            if layer is None
            else tuple(Source(_at(param.template, t.layer), t.weight, t.maps) for t in layer.terms)
        )
        return TensorPlan(param.name, terms, shape, self._noise(param), origin=origin, fold=self._fold(param, layer))

    def _identity(self, param: ParamSpec, layer: LayerOrigin | None) -> bool:
        """Post-LN: of layers from one origin, the last one's last norm has the affine; the other norms of new layers, and the
        last norms before them, only normalise."""
        if layer is None or not param.norm or not self.target.post_norm:
            return False
        behind = self.layers[param.layer + 1 : param.layer + 2]
        followed = bool(behind) and behind[0].new
        return followed if param.template.rsplit(".", 1)[0] == self.last_norm else layer.new

    def _silent(self, param: ParamSpec, shape: tuple[int, ...], origin: str) -> TensorPlan:
        """A tensor of a new layer that writes the residual stream: it adds nothing at step 0."""
        noise, matrix = self._noise(param), len(param.axes) > 1
        if self.options.depth == "cancel" and noise:
            return TensorPlan(param.name, (), shape, noise, origin=origin, note="new layer: fan-outs of copies cancel")
        short = " (its input space did not grow)" if self.options.depth == "cancel" and matrix else ""
        return TensorPlan(param.name, (), shape, origin=origin, note="new layer: zero" + short)

    def _noise(self, param: ParamSpec) -> tuple[int, ...]:
        """The axes along which something may be added unseen: one that reads a grown space, one that writes what is not looked at."""
        if param.use != "matmul" or not self.method.noise or not self.options.noise:
            return ()
        parts = [(axis, label.role, self.maps[name]) for axis, label in enumerate(param.axes) for name in label.spaces]
        return tuple(
            sorted(
                {
                    axis
                    for axis, role, chosen in parts
                    if (role == "reads" and chosen.free) or (role == "writes" and chosen.blind)
                }
            )
        )

    def _fold(self, param: ParamSpec, layer: LayerOrigin | None) -> str:
        scale = param.scaled_by or (param.template if param.axes[0].role == "scales" else "")
        return _at(scale, layer.origin if layer else None) if scale and self.folds else ""


def _at(template: str, layer: int | None) -> str:
    return template if layer is None else template.replace("{i}", str(layer))
