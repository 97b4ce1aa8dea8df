"""Carrying a plan out: W* = sum_j c_j E_out W_j R_in^T + N, one window of rows at a time.

Where a tensor writes a space its axis goes by E, where it reads by R, where it is a norm's gain by eta * E. A gradient
transforms by the transpose of that: `gradient_map`. Everything is differentiable in E, R, c and W.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from pipeline.errors import UserError, nearest
from pipeline.growth.initialization import normal
from pipeline.growth.maps import IndexMap, Map, Maps, SpaceMap
from pipeline.growth.method import ExpansionOptions, Method
from pipeline.growth.methods import aki, fpi, from_scratch, interpolate, lemon, net2net, stack
from pipeline.growth.plan import GrowthPlan, TensorPlan, make
from pipeline.models.architecture import Architecture, Axis, ParamSpec
from pipeline.rng import derive

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD for module in (lemon, net2net, fpi, aki, stack, interpolate, from_scratch)
}

Read = Callable[[str, range], Tensor]
"""(name, rows along the first axis) of a source tensor -> those rows."""
Open = Callable[[range], Tensor]
View = Callable[[str, SpaceMap], Map]


def plan_growth(source: Architecture, target: Architecture, options: ExpansionOptions) -> GrowthPlan:
    """Decide how `source` grows into `target`. Raises UserError with every reason when the method cannot."""
    if options.method not in METHODS:
        raise UserError(f"unknown method '{options.method}'{nearest(options.method, METHODS)}")
    method = METHODS[options.method]
    if reasons := method.refusals(source, target):
        raise UserError(f"method '{options.method}' cannot grow this model: {'; '.join(reasons)}")
    return make(source, target, method, options)


def weight_map(role: str, chosen: SpaceMap) -> Map:
    """How an axis of a weight grows."""
    return {
        "writes": chosen.writes,
        "scales": chosen.writes,
        "reads": chosen.reads,
        "gain": chosen.gains.scaled(chosen.eta),
    }[role]


def gradient_map(role: str, chosen: SpaceMap) -> Map:
    """How an axis of a gradient grows (growth-math, section 7): writes and reads swap. A gain's remainder multiplies
    zeros, so it gets no gradient, whatever its reader makes of it."""
    gain = chosen.reads.copied().scaled(1 / chosen.eta)
    return {"writes": chosen.reads, "scales": chosen.reads, "reads": chosen.writes, "gain": gain}[role]


def square_map(role: str, chosen: SpaceMap) -> Map:
    """How an axis of a squared gradient grows, taking the copies' gradients for independent."""
    return gradient_map(role, chosen).squared()


class PlanExecutor:
    """A plan with its maps, ready to grow tensors of either table."""

    def __init__(
        self,
        plan: GrowthPlan,
        source: Architecture,
        target: Architecture,
        std: float,
        *,
        maps: dict[str, Maps] | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        """std: of the target's fresh weights (initializer_range). maps: learned ones, else the method's. dtype: of the arithmetic."""
        self.plan, self.source, self.target, self.std, self.dtype = plan, source, target, std, dtype
        self.maps = maps or METHODS[plan.options.method].maps(source, target, plan.options.seed)
        self.params = {row.name: row for row in target.rows()}

    def tensors(self, read: Read) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the target, in the table's order."""
        for row in self.plan.rows:
            yield row.target, self.tensor(row, read)

    def tensor(self, row: TensorPlan, read: Read, rows: range | None = None) -> Tensor:
        """One target tensor, or its `rows` along the first axis: only those are computed, and only what they need is read."""
        param, rows = self.params[row.target], range(row.shape[0]) if rows is None else rows
        if row.fresh:
            return self._fresh(row, param, rows)
        terms = [
            (source.weight, self.map(self._opener(row, param, source.name, read), param, source.maps, weight_map, rows))
            for source in row.sources
        ]
        terms += [(1.0, self._noise(row, param, axis, rows)) for axis in row.noise]
        return self._appended(row, param, combined(terms) if terms else self._full(row, rows, row.fill), rows)

    def map(self, open: Open, param: ParamSpec, maps: str, view: View, rows: range) -> Tensor:
        """`rows` of E_out W R_in^T, or of what `view` makes of it, axis by axis and, along an axis, space by space. open: rows of W."""
        tensor = _joined(
            [
                self._first(open, param, number, chosen)
                for number, chosen in self.along(0, param.axes[0], maps, view, rows)
            ],
            0,
        )
        for axis, label in list(enumerate(param.axes))[1:]:
            parts = tensor.split([self.source.spaces[name].size for name in label.spaces], axis)
            tensor = _joined(
                [chosen.apply(parts[number], axis) for number, chosen in self.along(axis, label, maps, view, rows)],
                axis,
            )
        return tensor

    def _first(self, open: Open, param: ParamSpec, number: int, chosen: Map) -> Tensor:
        """The map along the first axis, in space `number` of it: of W only the rows that it needs are opened."""
        begin = sum(self.source.spaces[name].size for name in param.axes[0].spaces[:number])
        needs = chosen.needs
        return chosen.counted_from(needs).apply(open(range(begin + needs.start, begin + needs.stop)), 0)

    def along(self, axis: int, label: Axis, maps: str, view: View, rows: range) -> Iterator[tuple[int, Map]]:
        """(number, map) of the spaces along an axis; along the first one only what is in `rows`."""
        for number, name, window in self._windows(axis, label, rows):
            yield number, view(label.role, self.maps[maps][name]).rows(window)

    def _windows(self, axis: int, label: Axis, rows: range) -> Iterator[tuple[int, str, range]]:
        """(number, space, its own rows) of the spaces along an axis."""
        begin = 0
        for number, name in enumerate(label.spaces):
            size = self.target.spaces[name].size
            window = range(max(0, rows.start - begin), min(size, rows.stop - begin)) if axis == 0 else range(size)
            if window:
                yield number, name, window
            begin += size

    def _opener(self, row: TensorPlan, param: ParamSpec, name: str, read: Read) -> Open:
        """Opens rows of W_j; with the layer scale multiplied in where it folds, and the scale itself as one number (growth-math,
        section 5)."""
        if not row.fold:
            return lambda rows: read(name, rows).to(self.dtype)
        scale = read(row.fold, range(self.source.spaces[param.axes[0].spaces[0]].size)).to(self.dtype)
        level = scale.square().mean().sqrt() if scale.any() else torch.ones((), dtype=self.dtype)
        if param.axes[0].role == "scales":
            return lambda rows: level.expand(len(rows))
        factors = (scale / level).view(-1, *[1] * (len(param.axes) - 1))
        return lambda rows: read(name, rows).to(self.dtype) * factors[rows.start : rows.stop]

    def _full(self, row: TensorPlan, rows: range, value: float) -> Tensor:
        return torch.full((len(rows), *row.shape[1:]), value, dtype=self.dtype)

    def _normal(self, row: TensorPlan, param: ParamSpec, rows: Tensor, *key: str, scale: float = 1.0) -> Tensor:
        """Rows of the target's own initialisation of this tensor: they depend on the seed and the name, not on any order."""
        seeds = partial(derive, self.plan.options.seed, *key, row.target)
        return normal(row.shape, rows, scale * self.std * param.std, seeds).to(self.dtype)

    def _fresh(self, row: TensorPlan, param: ParamSpec, rows: range) -> Tensor:
        if param.fresh == "normal":
            return self._normal(row, param, torch.arange(rows.start, rows.stop), "fresh")
        return self._full(row, rows, param.std if param.fresh == "ones" else 0.0)

    def _noise(self, row: TensorPlan, param: ParamSpec, axis: int, rows: range) -> Tensor:
        """N = s * (Z - Z E (E^T E)^-1 E^T): the target's own fresh initialisation, as far as it is not seen along `axis`."""
        label, draw = param.axes[axis], partial(self._normal, row, param, scale=self.plan.options.noise)
        if axis == 0:
            return _joined([self._unseen_rows(row, draw, label, *part) for part in self._windows(0, label, rows)], 0)
        parts = draw(torch.arange(rows.start, rows.stop), "noise", str(axis)).split(
            [self.target.spaces[name].size for name in label.spaces], axis
        )
        unseen = [
            chosen.unseen(part, axis) if (chosen := self._seen(label, name)) else torch.zeros_like(part)
            for part, name in zip(parts, label.spaces, strict=True)
        ]
        return _joined(unseen, axis)

    def _unseen_rows(
        self, row: TensorPlan, draw: Callable[..., Tensor], label: Axis, number: int, name: str, window: range
    ) -> Tensor:
        """Along the first axis rows hang together: those of one source are drawn with it."""
        begin, chosen = (
            sum(self.target.spaces[before].size for before in label.spaces[:number]),
            self._seen(label, name),
        )
        if chosen is None:
            return self._full(row, window, 0.0)
        kin = chosen.kin(window)
        unseen = chosen.among(kin).unseen(draw(begin + kin, "noise", "0"), 0)
        return unseen.narrow(0, int(torch.searchsorted(kin, window.start)), len(window))

    def _seen(self, label: Axis, name: str) -> IndexMap | None:
        """What noise along this space must not meet; None where all of it would be seen."""
        chosen = self.maps[""][name]
        return chosen.writes if label.role == "reads" else chosen.blind

    def _appended(self, row: TensorPlan, param: ParamSpec, grown: Tensor, rows: range) -> Tensor:
        """Rows appended to a table start as a new model would start them (biases at 0)."""
        for axis, label in enumerate(param.axes):
            if self.maps[""][label.spaces[0]].appended:
                entries = torch.arange(rows.start, rows.stop) if axis == 0 else torch.arange(grown.shape[axis])
                new = entries >= self.source.spaces[label.spaces[0]].size
                shape = [-1 if other == axis else 1 for other in range(grown.dim())]
                grown = torch.where(new.view(shape), self._fresh(row, param, rows), grown) if new.any() else grown
        return grown


def combined(terms: list[tuple[float | Tensor, Tensor]]) -> Tensor:
    """sum_j c_j T_j."""
    weighted = [tensor if isinstance(weight, float) and weight == 1 else weight * tensor for weight, tensor in terms]
    return sum(weighted[1:], start=weighted[0])


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return torch.cat(parts, axis) if len(parts) > 1 else parts[0]
