"""Growing Adam's moments: a gradient transforms by the transpose of equation (1), its square by the squared maps.

Entries without a past (remainders, appended rows) get a first moment of 0 and, as second moment, the mean of the known
ones in their row, whole rows that of their tensor; what a new layer writes gets a first moment of 0 and the second moments
of the layer it stands behind: a zero beside a large step count would make their first updates sqrt(1 / (1 - beta_2)) times
too large. The step count is the source's.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.growth.execute import PlanExecutor, Read, View, combined, gradient_map, square_map
from pipeline.growth.maps import Map
from pipeline.growth.plan import GrowthPlan, TensorPlan
from pipeline.models.architecture import ParamSpec

READ = 1 << 22
"""Elements of a source tensor that are summed up at a time."""
VIEWS: dict[str, View] = {"exp_avg": gradient_map, "exp_avg_sq": square_map}


def refusals(plan: GrowthPlan, slots: set[str]) -> list[str]:
    """Why the optimizer state cannot grow; empty when it can."""
    reasons = []
    if missing := set(VIEWS) - slots:
        reasons.append(f"the source holds no {' and no '.join(sorted(missing))}")
    if other := slots - set(VIEWS):
        reasons.append(f"'{sorted(other)[0]}' is no state of AdamW")
    if any(row.fold for row in plan.rows):
        reasons.append(
            "layer scales are folded into their writers at this width, and their moments are not; choose a multiple of the source's width"
        )
    if any(row.fresh for row in plan.rows) or any(source.maps for row in plan.rows for source in row.sources):
        reasons.append(f"method '{plan.options.method}' makes units that have no one past")
    return reasons


def require(plan: GrowthPlan, slots: set[str]) -> None:
    """Raises UserError when the optimizer state cannot grow."""
    if reasons := refusals(plan, slots):
        raise UserError(f"optimizer state 'grow' is not possible: {'; '.join(reasons)}; use --optimizer-state reset")


@dataclass(frozen=True)
class Moment:
    """One moment of one target tensor; `read` opens rows of the source's moments in that slot by parameter name."""

    growth: PlanExecutor
    row: TensorPlan
    slot: str
    read: Read

    def rows(self, rows: range | None = None) -> Tensor:
        """All of it, or its `rows` along the first axis."""
        rows = range(self.row.shape[0]) if rows is None else rows
        if self.slot == "exp_avg" and not self.row.sources:
            return torch.zeros((len(rows), *self.row.shape[1:]), dtype=self.growth.dtype)
        view = VIEWS[self.slot]
        grown = combined(
            [
                (weight, self.growth.map(partial(self._open, name), self._param, "", view, rows))
                for name, weight in self._terms
            ]
        )
        if self.slot == "exp_avg":
            return grown
        known = self._known(0, rows).view(-1, *[1] * (grown.dim() - 1))
        return torch.where(known, self._filled(grown), self.typical) if not known.all() else self._filled(grown)

    def _filled(self, grown: Tensor) -> Tensor:
        """Entries without a past get the mean of the known ones in their row."""
        known = torch.ones((), dtype=torch.bool)
        for axis in range(1, grown.dim()):
            known = known.unsqueeze(-1) & self._known(axis)
        if known.all() or not known.any():
            return grown
        means = grown.flatten(1).sum(1) / known.sum()
        return torch.where(known, grown, means.view(-1, *[1] * known.dim()))

    @cached_property
    def typical(self) -> float:
        """The mean of all known entries, for rows without a past: the sum of all over the number of known ones."""
        total = sum(weight * self._summed(name) for name, weight in self._terms)
        known = math.prod(int(self._known(axis).sum()) for axis in range(len(self.row.shape)))
        return total / known if known else 0.0

    def _summed(self, name: str) -> float:
        """The sum of what source tensor `name` grows to: its entries, axis by axis, times the weights that they occur with."""
        first, *others = [
            torch.cat([chosen.back(torch.ones_like(made), 0) for chosen, made in self._along(axis)])
            for axis in range(len(self.row.shape))
        ]
        height, total = max(1, READ // math.prod(len(weights) for weights in others)), 0.0
        for start in range(0, len(first), height):
            tensor = self._open(name, range(start, min(start + height, len(first))))
            for weights in reversed(others):
                tensor = tensor @ weights
            total += (tensor @ first[start : start + height]).item()
        return total

    def _known(self, axis: int, rows: range | None = None) -> Tensor:
        """Which entries along an axis have a past."""
        return torch.cat([made > 0 for _, made in self._along(axis, rows)])

    def _along(self, axis: int, rows: range | None = None) -> Iterator[tuple[Map, Tensor]]:
        """The maps of an axis, each with what it makes of ones."""
        label = self._param.axes[axis]
        for number, chosen in self.growth.along(
            axis, label, "", VIEWS[self.slot], range(self.row.shape[0]) if rows is None else rows
        ):
            yield (
                chosen,
                chosen.apply(
                    torch.ones(self.growth.source.spaces[label.spaces[number]].size, dtype=self.growth.dtype), 0
                ),
            )

    def _open(self, name: str, rows: range) -> Tensor:
        return self.read(name, rows).to(self.growth.dtype)

    @property
    def _param(self) -> ParamSpec:
        return self.growth.params[self.row.target]

    @property
    def _terms(self) -> list[tuple[str, float]]:
        power = 2 if self.slot == "exp_avg_sq" else 1
        return [(source.name, source.weight**power) for source in self.row.sources] or [(self.row.origin, 1.0)]
