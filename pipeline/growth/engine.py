"""Carrying a plan out: W* = sum_j c_j E_out W_j R_in^T + N, one tensor at a time, in float64.

Where a tensor writes a space its axis goes by E, where it reads by R, where it is a norm's gain by eta * E.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pipeline.axes import Param, Table
from pipeline.errors import UserError
from pipeline.growth import lemon, maps
from pipeline.growth.maps import SpaceMap
from pipeline.growth.plan import Options, Plan, Row, make, reading_axis
from pipeline.streams import derive

METHODS = {"lemon": lemon}


def plan(source: Table, target: Table, eps: float, options: Options) -> Plan:
    """Decide how `source` grows into `target`. Raises UserError with every reason when a lossless method cannot."""
    method = METHODS[options.method]
    reasons = method.refusals(source, target)
    if reasons:
        raise UserError(f"method '{options.method}' cannot grow this model: {'; '.join(reasons)}")
    return make(source, target, eps, method.choose(source, target), options, method.LOSSLESS)


class Growth:
    """A plan with its maps, ready to grow tensors of either table."""

    def __init__(self, plan: Plan, source: Table, target: Table, noise_std: float):
        """`noise_std`: the standard deviation of the target's fresh initialisation (initializer_range)."""
        self.plan, self.source, self.target, self.noise_std = plan, source, target, noise_std
        self.maps = METHODS[plan.options.method].choose(source, target)
        self.rows = {row.name: row for row in target.rows()}

    def tensors(self, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(name, float64 tensor) of the target, in the table's order; `read` opens a source tensor by name."""
        for row in self.plan.rows:
            yield row.target, self.tensor(row, read)

    def tensor(self, row: Row, read: Callable[[str], Tensor]) -> Tensor:
        """One target tensor, float64."""
        param = self.rows[row.target]
        grown = torch.zeros(row.shape, dtype=torch.float64)
        for name, coefficient in row.sources:
            grown = grown + coefficient * self._map(read(name).to(torch.float64), param)
        return grown + self._noise(row, param) if row.noise else grown

    def _map(self, tensor: Tensor, param: Param) -> Tensor:
        for axis, label in enumerate(param.axes):
            chosen: SpaceMap = self.maps[label.space]
            if label.role == "gain":
                stream = label.source
                scale = maps.eta(self.source.spaces[stream].size, self.target.spaces[stream].size)
                tensor = scale * chosen.gains.apply(tensor, axis)
            else:
                tensor = (chosen.writes if label.role == "writes" else chosen.reads).apply(tensor, axis)
        return tensor

    def _noise(self, row: Row, param: Param) -> Tensor:
        """N = s * (Z - Z E (E^T E)^-1 E^T): the target's own fresh initialisation, as far as it is not seen."""
        options, axis = self.plan.options, reading_axis(param, self.maps)
        generator = torch.Generator().manual_seed(derive(options.seed, "noise", row.target))
        fresh = torch.randn(row.shape, generator=generator, dtype=torch.float64) * self.noise_std
        return options.noise * self.maps[param.axes[axis].space].project(fresh, axis)
