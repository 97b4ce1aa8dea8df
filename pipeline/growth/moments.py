"""Growing Adam's moments: a gradient transforms by the transpose of equation (1), its square by the squared maps.

Entries without a past (remainders, appended rows) get a first moment of 0 and, as second moment, the mean of their
tensor's known ones; what a new layer writes gets a first moment of 0 and the second moments of the layer it stands
behind: a zero beside a large step count would make their first updates sqrt(1 / (1 - beta_2)) times too large. The step
count is the source's.
"""

import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.growth.engine import Growth, Read, View, gradient_map, square_map
from pipeline.growth.plan import Plan, Row

VIEWS: dict[str, View] = {"exp_avg": gradient_map, "exp_avg_sq": square_map}


def refusals(plan: Plan, slots: set[str]) -> list[str]:
    """Why the optimizer state cannot grow; empty when it can."""
    reasons = []
    if missing := set(VIEWS) - slots:
        reasons.append(f"the source holds no {' and no '.join(sorted(missing))}")
    if other := slots - set(VIEWS):
        reasons.append(f"'{sorted(other)[0]}' is no state of AdamW")
    if any(row.fold for row in plan.rows):
        reasons.append("layer scales are folded into their writers at this width, and their moments are not; choose a multiple of the source's width")
    if any(row.fresh for row in plan.rows) or any(source.maps for row in plan.rows for source in row.sources):
        reasons.append(f"method '{plan.options.method}' makes units that have no one past")
    return reasons


def require(plan: Plan, slots: set[str]) -> None:
    """Raises UserError when the optimizer state cannot grow."""
    if reasons := refusals(plan, slots):
        raise UserError(f"optimizer state 'grow' is not possible: {'; '.join(reasons)}; use --optimizer-state reset")


def moment(growth: Growth, row: Row, slot: str, read: Read) -> Tensor:
    """One moment of one target tensor; `read` opens the source's moments in that slot by parameter name."""
    param, view = growth.params[row.target], VIEWS[slot]
    names = [(source.name, source.weight) for source in row.sources] or [(row.origin, 1.0)]
    power = 2 if slot == "exp_avg_sq" else 1
    grown = sum(weight**power * growth.map(read(name).to(growth.dtype), param, "", view) for name, weight in names)
    if slot == "exp_avg":
        return grown if row.sources else torch.zeros_like(grown)
    known = growth.map(torch.ones_like(read(names[0][0]), dtype=growth.dtype), param, "", view) > 0
    return torch.where(known, grown, grown[known].mean() if known.any() else 0.0)
