"""Carrying a plan out: W* = sum_j c_j E_out W_j R_in^T + N, one window of rows at a time.

The growth from 2 to 3 (growth-math, section 4) once more, now in numbers. The weight behind the norm is

    W = (  1   2  )     and becomes, by R of the norm's output (full copies,        W* = (  1   2   n1 )
        ( -1  0.5 )     the remainder not read) and noise in the free column,            ( -1  0.5  n2 )

    since   W R^T = (  1   2   0 )      and N, with N E = 0, is any matrix whose copied columns cancel; here there is
    one
                    ( -1  0.5  0 )      copy of each, so N is zero in the first two columns and free in the third.

The norm gives out (2.5, -1, 0), and W* (2.5, -1, 0) = (0.5, -3) = W (2.5, -1), whatever n1 and n2 are. The branch
behind it writes the stream with V; E V has as its third row the mean of the other two, so the stream keeps its form.

Every axis is grown by itself: where a tensor writes a space by E, where it reads by R, where it is a norm's gain by
eta * E. So the formula is a loop over axes, and an `AxisRule` says which map an axis goes by. A gradient goes by the
transpose of that (equation 7): the same loop with another rule, `on_gradient`.

The first axis comes first because of memory: a rank or a writing process asks for a window of *rows*, and by the map
of the first axis these rows need a few rows of the source only. The noise of a row depends on the seed, the tensor's
name and the row, never on the window. Where the projection couples rows (copies of one source, along the first axis),
the coupled rows are drawn with them. So a tensor grown in windows is the whole tensor, to the bit. Everything is
differentiable in E, R, c and W.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol

import torch
from torch import Tensor

from pipeline.growth.initialization import normal
from pipeline.growth.maps import IndexMap, Map, Maps, SpaceMap
from pipeline.growth.method import Block, Term
from pipeline.growth.plan import GrowthPlan, TensorPlan
from pipeline.models.architecture import Axis, ParamSpec, Role

Read = Callable[[str, range], Tensor]
"""(name, rows along the first axis) of a source tensor -> those rows."""


class AxisRule(Protocol):
    """Which map of a space an axis goes by, from the axis's role."""

    def __call__(self, role: Role, space: SpaceMap) -> Map: ...


class SourceRows(Protocol):
    """One source tensor, of which rows are read."""

    def __call__(self, rows: range) -> Tensor: ...


def on_weight(role: Role, space: SpaceMap) -> Map:
    """How an axis of a weight grows (growth-math, equations 1 and 4)."""
    if role == "reads":
        return space.reads
    return space.gains.scaled(space.eta) if role == "gain" else space.writes


def on_gradient(role: Role, space: SpaceMap) -> Map:
    """How an axis of a gradient grows (growth-math, equation 7): writes and reads swap. A gain's remainder multiplies
    zeros, so it gets no gradient, whatever its reader makes of it."""
    if role == "reads":
        return space.writes
    return space.reads.copied().scaled(1 / space.eta) if role == "gain" else space.reads


def on_squared_gradient(role: Role, space: SpaceMap) -> Map:
    """How an axis of a squared gradient grows, taking the copies' gradients for independent."""
    return on_gradient(role, space).squared()


@dataclass(frozen=True)
class PlainRows:
    """Rows of W_j, in the dtype of the arithmetic."""

    name: str
    read: Read
    dtype: torch.dtype

    def __call__(self, rows: range) -> Tensor:
        return self.read(self.name, rows).to(self.dtype)


@dataclass(frozen=True)
class FoldedRows:
    """Rows of diag(lambda) W_j / l, where a layer scale lambda is folded into its writer (growth-math, equation 6)."""

    weight: PlainRows
    factors: Tensor

    def __call__(self, rows: range) -> Tensor:
        tensor = self.weight(rows)
        return tensor * self.factors[rows.start : rows.stop].view(-1, *[1] * (tensor.dim() - 1))


@dataclass(frozen=True)
class MixedRows:
    """Rows of sum_j c_j W_j."""

    terms: tuple[tuple[float | Tensor, SourceRows], ...]

    def __call__(self, rows: range) -> Tensor:
        return combined((coefficient, source(rows)) for coefficient, source in self.terms)


@dataclass(frozen=True)
class BlockRows:
    """Rows of a block of W_j, counted from the block's first one."""

    whole: SourceRows
    block: Block

    def __call__(self, rows: range) -> Tensor:
        axis, start, length = self.block.axis, self.block.start, self.block.length
        if axis == 0:
            return self.whole(range(start + rows.start, start + rows.stop))
        return self.whole(rows).narrow(axis, start, length)


@dataclass(frozen=True)
class ConstantRows:
    """Rows of the layer scale that is left where it was folded: the constant l."""

    level: Tensor

    def __call__(self, rows: range) -> Tensor:
        return self.level.expand(len(rows))


class PlanExecutor:
    """Grows the tensors of a plan. dtype: of the arithmetic."""

    def __init__(self, plan: GrowthPlan, dtype: torch.dtype = torch.float64):
        self.plan, self.dtype = plan, dtype
        self.params = {param.name: param for param in plan.target.rows()}
        self._source_scales = {param.name: param.scale for param in plan.source.params}

    def factor(self, param: ParamSpec) -> float:
        """What a parameter that the model's code scales by its width is multiplied by; gradients by its inverse."""
        return self._source_scales[param.template or param.name] / param.scale

    def tensors(self, read: Read) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the target, in the architecture's order."""
        for tensor_plan in self.plan.tensors:
            yield tensor_plan.target, self.tensor(tensor_plan, read)

    def tensor(self, tensor_plan: TensorPlan, read: Read, rows: range | None = None) -> Tensor:
        """One target tensor, or its `rows` along the first axis: only those are computed, and only what they need is
        read."""
        param = self.params[tensor_plan.target]
        rows = range(tensor_plan.shape[0]) if rows is None else rows
        if tensor_plan.fresh:
            return self._fresh(tensor_plan, param, rows)
        addends = [self._stored(tensor_plan, param, read, rows)] if tensor_plan.grown else []
        addends += [self.noise(tensor_plan, rows)] if tensor_plan.noise else []
        empty = tensor_plan.fill / param.scale - param.offset
        grown = added(addends) if addends else self._full(tensor_plan, rows, empty)
        return self._append_fresh(tensor_plan, param, grown, rows)

    def _stored(self, tensor_plan: TensorPlan, param: ParamSpec, read: Read, rows: range) -> Tensor:
        """`rows` of what is stored, where scale * (stored + offset) grows: the maps are linear, so that the offset goes
        by them apart, and numbers that stay are carried to the bit."""
        factor = self.factor(param)
        grown = self._sum(tensor_plan, param, read, rows)
        grown = grown if factor == 1 else grown * factor
        if not param.offset:
            return grown

        def offset(name: str, rows: range) -> Tensor:
            return torch.full_like(read(name, rows), param.offset)

        shift = self._sum(tensor_plan, param, offset, rows) * factor - param.offset
        return torch.where(shift == 0, grown, grown + shift)

    def _sum(self, tensor_plan: TensorPlan, param: ParamSpec, read: Read, rows: range) -> Tensor:
        """`rows` of all that is grown from tensors of the source."""
        blocks = [self._blocks(tensor_plan, param, read, rows)] if tensor_plan.blocks else []
        return added(blocks + self._terms(tensor_plan, param, tensor_plan.terms, read, rows))

    def _blocks(self, tensor_plan: TensorPlan, param: ParamSpec, read: Read, rows: range) -> Tensor:
        """`rows` of the blocks of a tensor, each grown by itself."""
        windows = [(block, block.place.window(rows)) for block in tensor_plan.blocks]
        grown = [
            added(self._terms(tensor_plan, block.alone(param), block.terms, read, window))
            for block, window in windows
            if window
        ]
        return _joined(grown, tensor_plan.blocks[0].place.axis)

    def _terms(
        self, tensor_plan: TensorPlan, param: ParamSpec, terms: tuple[Term, ...], read: Read, rows: range
    ) -> list[Tensor]:
        """`rows` of E (sum_j c_j W_j) R^T for the terms that grow by the same maps: layers are mixed at their small
        size, for the maps are linear."""
        mixed: dict[str | None, list[tuple[float | Tensor, SourceRows]]] = {}
        for term in terms:
            source = self._source_rows(tensor_plan, param, term, read)
            mixed.setdefault(term.maps, []).append((term.coefficient, source))
        return [
            self.transform(MixedRows(tuple(sources)), param, self.plan.maps_named(maps), on_weight, rows)
            for maps, sources in mixed.items()
        ]

    def transform(self, source: SourceRows, param: ParamSpec, maps: Maps, rule: AxisRule, rows: range) -> Tensor:
        """`rows` of E_out W R_in^T, or of what another rule makes of W: axis by axis and, along an axis, space by
        space."""
        tensor = _joined(
            [
                self._first_axis(source, param, number, space_map)
                for number, space_map in self.axis_maps(param, 0, maps, rule, rows)
            ],
            0,
        )
        for axis in range(1, len(param.axes)):
            parts = tensor.split([self.plan.source.spaces[name].size for name in param.axes[axis].spaces], axis)
            tensor = _joined(
                [
                    space_map.apply(parts[number], axis)
                    for number, space_map in self.axis_maps(param, axis, maps, rule, rows)
                ],
                axis,
            )
        return tensor

    def _first_axis(self, source: SourceRows, param: ParamSpec, number: int, space_map: Map) -> Tensor:
        """The map along the first axis, in its space `number`: only the source rows that it reads are opened."""
        begin = sum(self.plan.source.spaces[name].size for name in param.axes[0].spaces[:number])
        read = space_map.source_range
        return space_map.rebase(read).apply(source(range(begin + read.start, begin + read.stop)), 0)

    def axis_maps(
        self, param: ParamSpec, axis: int, maps: Maps, rule: AxisRule, rows: range
    ) -> Iterator[tuple[int, Map]]:
        """(number, map) of the spaces along an axis; along the first one only what is in `rows`."""
        for number, name, window in self._windows(param.axes[axis], axis, rows):
            yield number, rule(param.axes[axis].role, maps.at(name, param.stack, param.layer)).rows(window)

    def _windows(self, label: Axis, axis: int, rows: range) -> Iterator[tuple[int, str, range]]:
        """(number, space, its own rows) of the spaces along an axis."""
        begin = 0
        for number, name in enumerate(label.spaces):
            size = self.plan.target.spaces[name].size
            window = range(max(0, rows.start - begin), min(size, rows.stop - begin)) if axis == 0 else range(size)
            if window:
                yield number, name, window
            begin += size

    def _source_rows(self, tensor_plan: TensorPlan, param: ParamSpec, term: Term, read: Read) -> SourceRows:
        """W_j, or its block."""
        whole = self._whole_rows(tensor_plan, param, tensor_plan.source_name(term), read)
        return BlockRows(whole, term.block) if term.block else whole

    def _whole_rows(self, tensor_plan: TensorPlan, param: ParamSpec, name: str, read: Read) -> SourceRows:
        """W_j; with the layer scale multiplied in where it folds, and the scale itself as one number (equation 6)."""
        weight = PlainRows(name, read, self.dtype)
        if tensor_plan.fold is None:
            return weight
        size = self.plan.source.spaces[param.axes[0].spaces[0]].size
        scale = read(tensor_plan.fold, range(size)).to(self.dtype)
        level = scale.square().mean().sqrt() if scale.any() else torch.ones((), dtype=self.dtype)
        return ConstantRows(level) if param.axes[0].role == "scales" else FoldedRows(weight, scale / level)

    def _full(self, tensor_plan: TensorPlan, rows: range, value: float) -> Tensor:
        return torch.full((len(rows), *tensor_plan.shape[1:]), value, dtype=self.dtype)

    def _normal(self, tensor_plan: TensorPlan, param: ParamSpec, rows: Tensor, scale: float, *stream: str) -> Tensor:
        """Rows of the target's own initialisation of this tensor: they depend on the seed and the name, not on any
        order."""
        std = scale * self.plan.init_std * param.std
        return normal(tensor_plan.shape, rows, std, self.plan.options.seed, *stream, tensor_plan.target).to(self.dtype)

    def _fresh(self, tensor_plan: TensorPlan, param: ParamSpec, rows: range) -> Tensor:
        if param.fresh == "normal":
            return self._normal(tensor_plan, param, torch.arange(rows.start, rows.stop), 1.0, "fresh")
        return self._full(tensor_plan, rows, (param.std if param.fresh == "ones" else 0.0) - param.offset)

    def noise(self, tensor_plan: TensorPlan, rows: range) -> Tensor:
        """N of a tensor that has any, along all its axes."""
        param = self.params[tensor_plan.target]
        return added(self._noise(tensor_plan, param, axis, rows) for axis in tensor_plan.noise)

    def _noise(self, tensor_plan: TensorPlan, param: ParamSpec, axis: int, rows: range) -> Tensor:
        """N = s * (Z - Z E (E^T E)^-1 E^T): the target's own fresh initialisation Z, projected along `axis` (equation
        2)."""
        label = param.axes[axis]
        if axis == 0:
            windows = self._windows(label, 0, rows)
            return _joined([self._row_noise(tensor_plan, param, *window) for window in windows], 0)
        sizes = [self.plan.target.spaces[name].size for name in label.spaces]
        stream = ("noise", str(axis))
        drawn = self._normal(tensor_plan, param, torch.arange(rows.start, rows.stop), self.plan.noise, *stream)
        parts = zip(drawn.split(sizes, axis), label.spaces, strict=True)
        return _joined([self._projected(part, param, axis, name) for part, name in parts], axis)

    def _projected(self, noise: Tensor, param: ParamSpec, axis: int, space: str) -> Tensor:
        computed_with = self._computed_with(param, axis, space)
        return computed_with.project_to_null_space(noise, axis) if computed_with else torch.zeros_like(noise)

    def _row_noise(self, tensor_plan: TensorPlan, param: ParamSpec, number: int, space: str, window: range) -> Tensor:
        """Noise along the first axis. The projection couples rows: all copies of a source are drawn together."""
        computed_with = self._computed_with(param, 0, space)
        if computed_with is None:
            return self._full(tensor_plan, window, 0.0)
        begin = sum(self.plan.target.spaces[before].size for before in param.axes[0].spaces[:number])
        coupled = computed_with.coupled_rows(window)
        drawn = self._normal(tensor_plan, param, begin + coupled, self.plan.noise, "noise", "0")
        projected = computed_with.restrict(coupled).project_to_null_space(drawn, 0)
        return projected.narrow(0, int(torch.searchsorted(coupled, window.start)), len(window))

    def _computed_with(self, param: ParamSpec, axis: int, space: str) -> IndexMap | None:
        """The E whose null space noise along this space must lie in; None where no noise is possible."""
        space_map = self.plan.noise_maps.at(space, param.stack, param.layer)
        if param.axes[axis].role != "reads":
            return space_map.query_null_space
        return space_map.writes if isinstance(space_map.writes, IndexMap) else None

    def _append_fresh(self, tensor_plan: TensorPlan, param: ParamSpec, grown: Tensor, rows: range) -> Tensor:
        """Rows appended to a vocabulary or to positions start as a new model would start them (biases at 0)."""
        for axis, label in enumerate(param.axes):
            if self.plan.maps.at(label.spaces[0], param.stack, param.layer).appended:
                entries = torch.arange(rows.start, rows.stop) if axis == 0 else torch.arange(grown.shape[axis])
                new = entries >= self.plan.source.spaces[label.spaces[0]].size
                if new.any():
                    new = new.view([-1 if other == axis else 1 for other in range(grown.dim())])
                    grown = torch.where(new, self._fresh(tensor_plan, param, rows), grown)
        return grown


def combined(terms: Iterable[tuple[float | Tensor, Tensor]]) -> Tensor:
    """sum_j c_j T_j, one after the other."""
    return added(tensor if isinstance(c, float) and c == 1 else c * tensor for c, tensor in terms)


def added(tensors: Iterable[Tensor]) -> Tensor:
    """sum_j T_j of one or more."""
    return reduce(add, tensors)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return torch.cat(parts, axis) if len(parts) > 1 else parts[0]
