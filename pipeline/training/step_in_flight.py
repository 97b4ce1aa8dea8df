"""A step whose work was given to the device: its loss, gradient norm and stop requests, on their way to the host.

On a GPU they are copied behind the step without waiting for it. Whoever reads them one step later finds them there,
and the device never stands still for them; on a CPU they are there when the step is.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.training.stopwatch import Stopwatch

AHEAD = {"cuda": 1, "cpu": 0}
"""Steps that the host gives to a device of each type before it reads the values of an earlier one. One keeps a GPU at
work while the host waits, and a NaN or a request to stop comes to notice one step late at most."""


class StepResult(NamedTuple):
    """loss: the mean over all ranks; norm: of the gradients before clipping, None where nothing measures it; stops:
    whether any rank wants to stop behind this step."""

    loss: float
    norm: float | None
    stops: bool


class StepInFlight:
    """The values of one step of an engine, the same on every rank."""

    def __init__(
        self,
        sums: Tensor,
        norm: Tensor,
        micro_batches: int,
        watch: Stopwatch,
        told: Callable[[float], float | None] = float,
    ):
        """sums: over all ranks, of the losses of their micro-batches and of their stop requests, (2,) float64;
        micro_batches: how many these were; told: what of the norm is the gradients' own."""
        measured = norm.detach().double().reshape(1).to(sums.device)
        self._values = torch.cat([sums, measured]).to("cpu", non_blocking=True)
        self._told, self._micro_batches, self._watch = told, micro_batches, watch
        self._arrival = torch.cuda.Event() if sums.is_cuda else None
        if self._arrival is not None:
            self._arrival.record()

    def finish(self) -> StepResult:
        """Wait until the device has done the step. To be called once, for one step after the other."""
        if self._arrival is not None:
            self._arrival.synchronize()
        self._watch.settle()
        loss, stops, norm = self._values.tolist()
        return StepResult(loss / self._micro_batches, self._told(norm), stops > 0)
