"""Carrying a plan out: W* = sum_j c_j E_out W_j R_in^T + N, one tensor at a time.

Where a tensor writes a space its axis goes by E, where it reads by R, where it is a norm's gain by eta * E. A gradient
transforms by the transpose of that: `gradient_map`. Everything is differentiable in E, R, c and W.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.axes import Axis, Param, Table
from pipeline.errors import UserError, nearest
from pipeline.growth import aki, fpi, interpolate, lemon, net2net, random, stack
from pipeline.growth.maps import Map, Maps, SpaceMap
from pipeline.growth.method import Method, Options
from pipeline.growth.plan import Plan, Row, Source, make
from pipeline.streams import derive

METHODS: dict[str, Method] = {module.METHOD.name: module.METHOD for module in (lemon, net2net, fpi, aki, stack, interpolate, random)}

Read = Callable[[str], Tensor]
View = Callable[[str, SpaceMap], Map]


def plan(source: Table, target: Table, eps: float, options: Options) -> Plan:
    """Decide how `source` grows into `target`. Raises UserError with every reason when the method cannot."""
    if options.method not in METHODS:
        raise UserError(f"unknown method '{options.method}'{nearest(options.method, METHODS)}")
    method = METHODS[options.method]
    if reasons := method.refusals(source, target):
        raise UserError(f"method '{options.method}' cannot grow this model: {'; '.join(reasons)}")
    return make(source, target, eps, method, options)


def weight_map(role: str, chosen: SpaceMap) -> Map:
    """How an axis of a weight grows."""
    return {"writes": chosen.writes, "scales": chosen.writes, "reads": chosen.reads, "gain": chosen.gains.scaled(chosen.eta)}[role]


def gradient_map(role: str, chosen: SpaceMap) -> Map:
    """How an axis of a gradient grows (growth-math, section 7): writes and reads swap. A gain's remainder multiplies
    zeros, so it gets no gradient, whatever its reader makes of it."""
    gain = chosen.reads.copied().scaled(1 / chosen.eta)
    return {"writes": chosen.reads, "scales": chosen.reads, "reads": chosen.writes, "gain": gain}[role]


def square_map(role: str, chosen: SpaceMap) -> Map:
    """How an axis of a squared gradient grows, taking the copies' gradients for independent."""
    return gradient_map(role, chosen).squared()


class Growth:
    """A plan with its maps, ready to grow tensors of either table."""

    def __init__(self, plan: Plan, source: Table, target: Table, std: float, *, maps: dict[str, Maps] | None = None,
                 dtype: torch.dtype = torch.float64):
        """std: of the target's fresh weights (initializer_range). maps: learned ones, else the method's. dtype: of the arithmetic."""
        self.plan, self.source, self.target, self.std, self.dtype = plan, source, target, std, dtype
        self.maps = maps or METHODS[plan.options.method].maps(source, target, plan.options.seed)
        self.params = {row.name: row for row in target.rows()}

    def tensors(self, read: Read) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of the target, in the table's order; `read` opens a source tensor by name."""
        for row in self.plan.rows:
            yield row.target, self.tensor(row, read)

    def tensor(self, row: Row, read: Read) -> Tensor:
        """One target tensor."""
        param = self.params[row.target]
        if row.fresh:
            return self._fresh(row, param)
        grown = [self._term(source, self._open(row, param, source.name, read), param) for source in row.sources]
        terms = grown + [self._noise(row, param, axis) for axis in row.noise] or [torch.full(row.shape, row.fill, dtype=self.dtype)]
        return self._appended(row, param, sum(terms[1:], start=terms[0]))

    def _term(self, source: Source, tensor: Tensor, param: Param) -> Tensor:
        mapped = self.map(tensor, param, source.maps, weight_map)
        return mapped if isinstance(source.weight, float) and source.weight == 1 else source.weight * mapped

    def map(self, tensor: Tensor, param: Param, maps: str, view: View) -> Tensor:
        """E_out W R_in^T, or what `view` makes of it, axis by axis and, along an axis, space by space."""
        for axis, label in enumerate(param.axes):
            parts = tensor.split([self.source.spaces[name].size for name in label.spaces], axis)
            chosen = [self.maps[maps][name] for name in label.spaces]
            mapped = [view(label.role, c).apply(part, axis) for part, c in zip(parts, chosen, strict=True)]
            tensor = torch.cat(mapped, axis) if len(mapped) > 1 else mapped[0]
        return tensor

    def _open(self, row: Row, param: Param, name: str, read: Read) -> Tensor:
        """W_j; with the layer scale multiplied in where it folds, and the scale itself as one number (growth-math, section 5)."""
        tensor = read(name).to(self.dtype)
        if not row.fold:
            return tensor
        scale = read(row.fold).to(self.dtype)
        level = scale.square().mean().sqrt() if scale.any() else torch.ones((), dtype=self.dtype)
        if param.axes[0].role == "scales":
            return level.expand_as(scale)
        return tensor * (scale / level).view(-1, *[1] * (tensor.dim() - 1))

    def _normal(self, row: Row, param: Param, *key: str, scale: float = 1.0) -> Tensor:
        """The target's own initialisation of this tensor: it depends on the seed and the name, not on any order."""
        generator = torch.Generator().manual_seed(derive(self.plan.options.seed, *key, row.target))
        return torch.empty(row.shape).normal_(0.0, scale * self.std * param.std, generator=generator).to(self.dtype)

    def _fresh(self, row: Row, param: Param) -> Tensor:
        if param.fresh == "normal":
            return self._normal(row, param, "fresh")
        return torch.full(row.shape, param.std if param.fresh == "ones" else 0.0, dtype=self.dtype)

    def _noise(self, row: Row, param: Param, axis: int) -> Tensor:
        """N = s * (Z - Z E (E^T E)^-1 E^T): the target's own fresh initialisation, as far as it is not seen along `axis`."""
        label = param.axes[axis]
        fresh = self._normal(row, param, "noise", str(axis), scale=self.plan.options.noise)
        parts = fresh.split([self.target.spaces[name].size for name in label.spaces], axis)
        unseen = [self._unseen(part, label, name, axis) for part, name in zip(parts, label.spaces, strict=True)]
        return torch.cat(unseen, axis) if len(unseen) > 1 else unseen[0]

    def _unseen(self, fresh: Tensor, label: Axis, name: str, axis: int) -> Tensor:
        chosen = self.maps[""][name]
        if label.role == "reads":
            return chosen.writes.unseen(fresh, axis)
        return chosen.blind.unseen(fresh, axis) if chosen.blind else torch.zeros_like(fresh)

    def _appended(self, row: Row, param: Param, grown: Tensor) -> Tensor:
        """Rows appended to a table start as a new model would start them (biases at 0)."""
        for axis, label in enumerate(param.axes):
            if self.maps[""][label.spaces[0]].appended:
                new = torch.arange(grown.shape[axis]) >= self.source.spaces[label.spaces[0]].size
                shape = [-1 if other == axis else 1 for other in range(grown.dim())]
                grown = torch.where(new.view(shape), self._fresh(row, param), grown)
        return grown
