"""Growing an optimizer's state: a gradient grows by the transpose of equation (1), its square by the squared maps
(growth-math, section 7). Which of the two a slot does, its `power` says.

Entries without a history (remainders, appended rows) start at 0 in a slot that adds up gradients. In one that adds up
squares they get the mean of the known ones in their row, whole rows that of their tensor; and what a new layer writes
gets the squares of the layer behind which it stands. A zero beside a large step count would make their first updates
sqrt(1 / (1 - beta_2)) times too large. The step count is the source's.

State may also be kept: unscaled where the source's entries lie, zero in all others (SPARKLING, arXiv:2602.02472), which
then have a step count of their own (new_entries.py).
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.growth.execute import AxisRule, PlainRows, PlanExecutor, Read, combined, on_gradient, on_squared_gradient
from pipeline.growth.maps import DenseMap, Map, SpaceMap
from pipeline.growth.new_entries import on_kept
from pipeline.growth.plan import GrowthPlan, TensorPlan
from pipeline.models.architecture import ParamSpec
from pipeline.optim.optimizers import OptimizerSpec, Slot
from pipeline.records.stage_facts import OptimizerState

CHUNK = 1 << 22
"""Elements of a source tensor that are summed up at a time."""
RULES: dict[int, AxisRule] = {1: on_gradient, 2: on_squared_gradient}
"""By a slot's power."""


def refusals(
    plan: GrowthPlan, slots: Sequence[Slot], stored: Collection[str], state: OptimizerState = "grow", new: bool = False
) -> list[str]:
    """Why the optimizer state cannot go on so; empty when it can. slots: that the optimizer keeps for parameters of the
    source. stored: the source's, by name. state: `grow` or `asymmetric`. new: whether the source has entries that an
    earlier growth has added, with a count of steps of their own."""
    names = [slot.name for slot in slots]
    reasons = []
    if missing := sorted(set(names) - set(stored)):
        reasons.append(f"the source holds no {' and no '.join(missing)}")
    if unknown := sorted(set(stored) - set(names)):
        reasons.append(f"the source holds '{unknown[0]}', which is no state of this optimizer ({', '.join(names)})")
    if any(tensor_plan.fold for tensor_plan in plan.tensors):
        reasons.append(
            "at this width layer scales are multiplied into the weights they scale, whose optimizer state then no "
            "longer fits; choose a multiple of the source's width"
        )
    if state == "asymmetric":
        return reasons + _unkept(plan)
    if new and _mixes(plan):
        reasons.append(
            f"method '{plan.options.method}' mixes entries that an earlier growth has added with older ones, and they "
            "have seen other numbers of steps"
        )
    if any(tensor_plan.fresh or _mixes_units(tensor_plan) for tensor_plan in plan.tensors):
        reasons.append(
            f"method '{plan.options.method}' starts units or layers afresh, or builds them from several layers, so "
            "that they have no optimizer state to continue"
        )
    if any(tensor_plan.blocks for tensor_plan in plan.tensors):
        reasons.append(
            f"method '{plan.options.method}' makes each matrix of matrices of several kinds, whose optimizer states "
            "do not add up to one"
        )
    return reasons


def _unkept(plan: GrowthPlan) -> list[str]:
    """Why entries of the source lie nowhere in the target, or all of them are gone."""
    if _mixes(plan):
        return [f"method '{plan.options.method}' mixes units or layers, and none of the source's stay as they are"]
    if any(tensor_plan.fresh and tensor_plan.template == tensor_plan.target for tensor_plan in plan.tensors):
        return [f"method '{plan.options.method}' starts every tensor afresh"]
    return []


def _mixes(plan: GrowthPlan) -> bool:
    """Whether anything is made by a matrix, or of several tensors by the same maps."""
    dense = any(isinstance(space.writes, DenseMap) for maps in _all_maps(plan) for space in maps.values())
    sums = (tensor_plan.terms for tensor_plan in plan.tensors)
    return dense or any(len(terms) > len({term.maps for term in terms}) for terms in sums)


def _all_maps(plan: GrowthPlan) -> Iterator[Mapping[str, SpaceMap]]:
    yield plan.maps
    yield from plan.maps.overrides.values()


def _mixes_units(tensor_plan: TensorPlan) -> bool:
    return any(term.maps is not None or term.template or term.block for term in tensor_plan.terms)


def require(
    plan: GrowthPlan, state: OptimizerState, slots: Sequence[Slot], stored: Collection[str], new: bool = False
) -> None:
    """Raises UserError when the optimizer state cannot go on as `state` says. Arguments as of `refusals`."""
    if reasons := refusals(plan, slots, stored, state, new):
        kept = state == "grow" and not new and not refusals(plan, slots, stored, "asymmetric")
        way_out = "asymmetric, or reset" if kept else "reset"
        raise UserError(
            f"optimizer state '{state}' is not possible: {'; '.join(reasons)}; use --optimizer-state {way_out}"
        )


def require_sources(
    where: str, plan: GrowthPlan, wanted: Mapping[str, Collection[str]], stored: Mapping[str, Collection[str]]
) -> None:
    """Raises UserError where the source lacks the state that a target parameter grows from: its optimizer trains that
    parameter by another rule. wanted: the target's parameters by slot; stored: the source's. where: the source."""
    for slot, targets in wanted.items():
        for each in plan.tensors:
            sources = [each.source_name(term) for term in each.terms] or [each.origin] if each.origin else []
            if each.target in targets and (lacking := [name for name in sources if name not in stored.get(slot, ())]):
                raise UserError(
                    f"{where}: holds no {slot} of '{lacking[0]}', from which that of '{each.target}' would grow: its "
                    "optimizer trains the parameter by another rule; use --optimizer-state reset"
                )


def require_continued(where: str, left: OptimizerSpec, behind: OptimizerSpec) -> None:
    """Raises UserError when the optimizer `behind` an expansion cannot go on from the state that the one before it has
    `left`. where: what says that it is to."""
    if not behind.continues(left):
        raise UserError(
            f"{where}: the state is that of {_words(left)}, and the stage behind trains with {_words(behind)}; "
            "use the same optimizer for both, or reset the state"
        )


def _words(optimizer: OptimizerSpec) -> str:
    return f"{optimizer.kind} ({', '.join(slot.name for slot in optimizer.slots) or 'without state'})"


@dataclass(frozen=True)
class GrownSlot:
    """One slot of one target tensor. read: rows of the source's tensors in that slot, by parameter name."""

    executor: PlanExecutor
    tensor_plan: TensorPlan
    slot: Slot
    read: Read

    def rows(self, rows: range | None = None) -> Tensor:
        """All of it, or its `rows` along the first axis."""
        shape, dtype = self.tensor_plan.shape, self.executor.dtype
        rows = range(shape[0]) if rows is None else rows
        if self.slot.power == 1 and not self.tensor_plan.terms:
            return torch.zeros((len(rows), *shape[1:]), dtype=dtype)
        grown = combined([(coefficient, self._transformed(name, rows)) for name, coefficient in self._terms])
        if self.slot.power == 1:
            return grown
        recorded = self._known(0, rows).view(-1, *[1] * (grown.dim() - 1))
        filled = self._filled(grown)
        return filled if recorded.all() else torch.where(recorded, filled, self.typical)

    def _transformed(self, name: str, rows: range) -> Tensor:
        source, maps = self._source(name), self.executor.plan.maps
        grown = self.executor.transform(source, self._param, maps, self._rule, rows)
        return grown if self._factor == 1 else grown * self._factor

    @property
    def _factor(self) -> float:
        """What the gradient's scale adds to its maps: the inverse of the weight's, to the slot's power."""
        return self.executor.factor(self._param) ** -self.slot.power

    def _filled(self, grown: Tensor) -> Tensor:
        """Entries without a history get the mean of the known ones in their row."""
        recorded = torch.ones((), dtype=torch.bool)
        for axis in range(1, grown.dim()):
            recorded = recorded.unsqueeze(-1) & self._known(axis)
        if recorded.all() or not recorded.any():
            return grown
        means = grown.flatten(1).sum(1) / recorded.sum()
        return torch.where(recorded, grown, means.view(-1, *[1] * recorded.dim()))

    @cached_property
    def typical(self) -> float:
        """The mean of all known entries, for rows without a history: the sum of all over the number of known ones."""
        total = self._factor * sum(coefficient * self._sum(name) for name, coefficient in self._terms)
        recorded = math.prod(int(self._known(axis).sum()) for axis in range(len(self.tensor_plan.shape)))
        return float(total / recorded) if recorded else 0.0

    def _sum(self, name: str) -> float:
        """The sum of what a source tensor grows to: its entries, axis by axis, times the weights that they occur
        with. Not by a product of matrices: the rounding of those differs with where in memory their operands lie."""
        first, *others = [
            torch.cat([axis_map.apply_transpose(torch.ones_like(ones), 0) for axis_map, ones in self._axis(axis)])
            for axis in range(len(self.tensor_plan.shape))
        ]
        source, total = self._source(name), 0.0
        height = max(1, CHUNK // math.prod(len(weights) for weights in others))
        for start in range(0, len(first), height):
            tensor = source(range(start, min(start + height, len(first))))
            for weights in reversed(others):
                tensor = (tensor * weights).sum(-1)
            total += (tensor * first[start : start + height]).sum().item()
        return total

    def _known(self, axis: int, rows: range | None = None) -> Tensor:
        """Which entries along an axis have a history."""
        return torch.cat([ones > 0 for _, ones in self._axis(axis, rows)])

    def _axis(self, axis: int, rows: range | None = None) -> Iterator[tuple[Map, Tensor]]:
        """The maps of an axis, each with what it makes of ones."""
        rows = range(self.tensor_plan.shape[0]) if rows is None else rows
        plan, param = self.executor.plan, self._param
        for number, axis_map in self.executor.axis_maps(param, axis, plan.maps, self._rule, rows):
            size = plan.source.spaces[param.axes[axis].spaces[number]].size
            yield axis_map, axis_map.apply(torch.ones(size, dtype=self.executor.dtype), 0)

    def _source(self, name: str) -> PlainRows:
        return PlainRows(name, self.read, self.executor.dtype)

    @property
    def _rule(self) -> AxisRule:
        return RULES[self.slot.power]

    @property
    def _param(self) -> ParamSpec:
        return self.executor.params[self.tensor_plan.target]

    @property
    def _terms(self) -> list[tuple[str, float | Tensor]]:
        """(source tensor, coefficient) of the terms; of a tensor without terms, the one in whose place it stands."""
        tensor_plan, power = self.tensor_plan, self.slot.power
        terms = [(tensor_plan.source_name(term), term.coefficient**power) for term in tensor_plan.terms]
        assert tensor_plan.origin is not None, "fresh layers have been refused"
        return terms or [(tensor_plan.origin, 1.0)]


@dataclass(frozen=True)
class KeptSlot:
    """One slot of one target tensor, kept where the source's entries lie first, zero elsewhere. read: as above.
    goes_on: whether the tensor goes on from the source's in whose place it stands; else it is new."""

    executor: PlanExecutor
    tensor_plan: TensorPlan
    read: Read
    goes_on: bool

    def rows(self, rows: range | None = None) -> Tensor:
        """All of it, or its `rows` along the first axis."""
        shape, dtype, origin = self.tensor_plan.shape, self.executor.dtype, self.tensor_plan.origin
        rows = range(shape[0]) if rows is None else rows
        if not self.goes_on or origin is None:
            return torch.zeros((len(rows), *shape[1:]), dtype=dtype)
        source, param = PlainRows(origin, self.read, dtype), self.executor.params[self.tensor_plan.target]
        return self.executor.transform(source, param, self.executor.plan.maps, on_kept, rows)
