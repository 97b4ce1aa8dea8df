"""Which entries of a grown model are new, and since when: those that lie off the source's along any axis.

Along an axis the source's entries lie where they are copied first (`IndexMap.first_copies`); along all axes of a tensor
at once these are the source's tensor, unscaled places of it. So a mask of a whole model is a few ranges for each
tensor. A source layer goes on in the first target layer that is made of it; the others are new.

A checkpoint holds the growths that its optimizer's state came through, as `NewEntries` each, under `NEW_ENTRIES`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.growth.execute import AxisRule, PlanExecutor
from pipeline.growth.maps import DenseMap, IndexMap, Map, SpaceMap
from pipeline.growth.plan import GrowthPlan, TensorPlan
from pipeline.models.architecture import Architecture, ParamSpec, Role
from pipeline.records.stage_facts import NEW_ENTRIES

Ranges = tuple[tuple[int, int], ...]
"""Of entries along an axis, each from its first to behind its last."""
NO_ROWS: Ranges = ()


def on_kept(role: Role, space: SpaceMap) -> Map:
    """How an axis takes its first copies over, unscaled, whatever its role; zeros elsewhere."""
    return require_index(space.writes).first_copies()


def on_all_copies(role: Role, space: SpaceMap) -> Map:
    """The same of all copies."""
    return require_index(space.writes).all_copies()


def require_index(axis_map: Map) -> IndexMap:
    assert not isinstance(axis_map, DenseMap), "a plan with dense maps has been refused"
    return axis_map


def heirs(plan: GrowthPlan) -> dict[str, set[int]]:
    """By stack, the target's layers that go on from a source layer: the first of each."""
    going_on: dict[str, set[int]] = {}
    for stack, origins in plan.layers.items():
        seen: set[int] = set()
        going_on[stack] = set()
        for layer, origin in enumerate(origins):
            if origin.continued is not None and not origin.new and origin.continued not in seen:
                seen.add(origin.continued)
                going_on[stack].add(layer)
    return going_on


@dataclass(frozen=True)
class NewEntries:
    """The entries that a growth has added.

    since: the step of the training at which it was. counted: the optimizer's own count of steps then; None where it
    keeps none. kept: for each parameter with new entries, by its published name, the ranges of old ones along each of
    its axes; no ranges at all: the whole parameter is new.
    """

    since: int
    counted: float | None
    kept: Mapping[str, tuple[Ranges, ...]]

    def mask(self, name: str, shape: Sequence[int]) -> Tensor | None:
        """Which entries of a parameter are new, bool, in its shape; None: none of them."""
        if name not in self.kept:
            return None
        old = torch.ones((), dtype=torch.bool)
        for size, ranges in zip(shape, self.kept[name] or (NO_ROWS,) * len(shape), strict=True):
            along = torch.zeros(size, dtype=torch.bool)
            for start, stop in ranges:
                along[start:stop] = True
            old = old.unsqueeze(-1) & along
        return ~old

    def count(self, model: Architecture) -> int:
        """How many there are in a model of this architecture."""
        whole = {row.name: prod(model.shape(row)) for row in model.rows() if row.name in self.kept}
        old = {name: prod(sum(b - a for a, b in ranges) for ranges in self.kept[name]) for name in whole}
        return sum(size - (old[name] if self.kept[name] else 0) for name, size in whole.items())

    def numbers(self, model: Architecture) -> tuple[int, int]:
        """(numbers, of which partly) in the parameters of a model of this architecture that hold new ones: all, and
        those of parameters that hold old ones too."""
        sizes = {row.name: prod(model.shape(row)) for row in model.rows() if row.name in self.kept}
        return sum(sizes.values()), sum(size for name, size in sizes.items() if self.kept[name])

    def as_plain(self) -> dict[str, Any]:
        """As a checkpoint holds it: numbers, lists and dicts alone."""
        kept = {name: [[list(each) for each in ranges] for ranges in axes] for name, axes in self.kept.items()}
        return {"since": self.since, "counted": self.counted, "kept": kept}

    def require_fitting(self, model: Architecture) -> None:
        """Raises UserError where it speaks of other parameters than a model of this architecture has."""
        shapes = {row.name: model.shape(row) for row in model.rows()}
        for name, axes in self.kept.items():
            shape = shapes.get(name)
            if shape is None or (axes and len(axes) != len(shape)) or not _inside(axes, shape):
                raise UserError(f"its '{NEW_ENTRIES}' are of another model ('{name}'); the file is damaged")

    @classmethod
    def of_plain(cls, content: Any) -> "NewEntries":
        """Raises UserError for content that is not what `as_plain` gives."""
        try:
            kept = {
                str(name): tuple(tuple((int(start), int(stop)) for start, stop in ranges) for ranges in axes)
                for name, axes in content["kept"].items()
            }
            counted = content["counted"]
            return cls(int(content["since"]), None if counted is None else float(counted), kept)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"its '{NEW_ENTRIES}' are none ({error!r}); the file is damaged") from error


def _inside(axes: tuple[Ranges, ...], shape: tuple[int, ...]) -> bool:
    return all(0 <= start < stop <= size for ranges, size in zip(axes, shape, strict=False) for start, stop in ranges)


def read(engine: Mapping[str, Any]) -> tuple[NewEntries, ...]:
    """The growths that a checkpoint tells of. engine: what it holds beside tensors. Raises UserError."""
    content = engine.get(NEW_ENTRIES) or []
    if not isinstance(content, list):
        raise UserError(f"its '{NEW_ENTRIES}' are no list but {type(content).__name__}; the file is damaged")
    return tuple(NewEntries.of_plain(each) for each in content)


def written(growths: Sequence[NewEntries]) -> dict[str, Any]:
    """What a checkpoint holds of them."""
    return {NEW_ENTRIES: [each.as_plain() for each in growths]} if growths else {}


def by_growth(growths: Sequence[NewEntries], name: str, shape: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """(number of a growth, which entries of a parameter are of it): each belongs to the last one that has added it."""
    later = torch.zeros(tuple(shape), dtype=torch.bool)
    for number in reversed(range(len(growths))):
        if (mask := growths[number].mask(name, shape)) is not None:
            yield number, mask & ~later
            later |= mask


def of_growth(plan: GrowthPlan, since: int, counted: float | None) -> NewEntries:
    """The entries that a plan adds."""
    grown = _Grown(plan, on_kept)
    kept = ((each.target, grown.kept(each, None)) for each in plan.tensors)
    return NewEntries(since, counted, {name: ranges for name, ranges in kept if ranges is not None})


def carried(before: NewEntries, plan: GrowthPlan, all_copies: bool) -> NewEntries:
    """The new entries of an earlier growth where a plan has taken them. all_copies: every copy is as old as what it
    copies, and so are layers made of others; else only what goes on, and the plan's own new entries are of its own
    growth, whatever this says of them."""
    grown = _Grown(plan, on_all_copies if all_copies else on_kept)
    kept = ((each.target, grown.kept(each, before)) for each in plan.tensors)
    return NewEntries(before.since, before.counted, {name: ranges for name, ranges in kept if ranges is not None})


class _Grown:
    """Where entries of a source lie in its target. rule: which copies."""

    def __init__(self, plan: GrowthPlan, rule: AxisRule):
        self.plan, self.rule = plan, rule
        self.executor, self.heirs = PlanExecutor(plan), heirs(plan)

    def kept(self, each: TensorPlan, before: NewEntries | None) -> tuple[Ranges, ...] | None:
        """The old entries of a target tensor along its axes; None: all are. before: what of the source was new; None:
        nothing, and what the plan adds is."""
        param = self.executor.params[each.target]
        goes_on = param.layer is None or param.layer in self.heirs[param.stack]
        if before is None:
            return self._first(param) if goes_on and each.origin is not None else ()
        if each.origin is None or each.origin not in before.kept or not (goes_on or self.rule is on_all_copies):
            return None
        if not before.kept[each.origin]:
            return ()
        return tuple(self._taken(param, axis, ranges) for axis, ranges in enumerate(before.kept[each.origin]))

    def _first(self, param: ParamSpec) -> tuple[Ranges, ...] | None:
        along = [self._along(param, axis, torch.ones) for axis in range(len(param.axes))]
        return None if all(each.all() for each in along) else tuple(map(_ranges, along))

    def _taken(self, param: ParamSpec, axis: int, ranges: Ranges) -> Ranges:
        """Old entries: copies of old ones, and what copies none."""

        def new(size: int) -> Tensor:
            old = torch.zeros(size)
            for start, stop in ranges:
                old[start:stop] = 1
            return 1 - old

        return _ranges(self._along(param, axis, new) == 0)

    def _along(self, param: ParamSpec, axis: int, values: Callable[[int], Tensor]) -> Tensor:
        """What becomes along an axis of the target of values along that of the source."""
        spaces, rows = self.plan.source.spaces, range(self.plan.target.shape(param)[0])
        whole = values(sum(spaces[name].size for name in param.axes[axis].spaces))
        parts = whole.split([spaces[name].size for name in param.axes[axis].spaces])
        maps = self.executor.axis_maps(param, axis, self.plan.maps, self.rule, rows)
        return torch.cat([axis_map.apply(parts[number], 0) for number, axis_map in maps])


def _ranges(kept: Tensor) -> Ranges:
    """The entries along an axis that are not 0."""
    edges = [0, *((kept[1:] != 0) != (kept[:-1] != 0)).nonzero().flatten().add(1).tolist(), len(kept)]
    return tuple((start, stop) for start, stop in pairwise(edges) if stop > start and kept[start])
