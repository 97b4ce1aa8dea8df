"""Learning-rate schedules: pure functions of the step, so that resuming needs no scheduler state.

LEMON (arXiv:2310.07999) keeps the from-scratch peak and shortens the decay horizon: linear warm-up, then
cosine to the minimum at `fraction * horizon`.
"""

import math
from dataclasses import dataclass

from pipeline.config import Schedule
from pipeline.durations import Pace
from pipeline.errors import UserError


@dataclass(frozen=True)
class Rates:
    """A schedule with its durations resolved to steps. `steps` is where the decay ends and training stops."""

    kind: str
    peak: float
    minimum: float
    initial: float
    warmup: int
    steps: int

    def at(self, step: int) -> float:
        """The rate of update number `step` (the first is 0); from `steps` on it stays at the minimum."""
        if step < self.warmup:
            return self.initial + (self.peak - self.initial) * step / self.warmup
        if self.kind == "constant":
            return self.peak
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        left = 1.0 - done if self.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.minimum + (self.peak - self.minimum) * left


def resolve(schedule: Schedule, pace: Pace) -> Rates:
    """Turn a config's durations into steps at this `pace`; `lemon` ends at `fraction` of the horizon.

    Raises UserError when the warm-up would not end before the horizon.
    """
    horizon, warmup = schedule.horizon.steps(pace), schedule.warmup.steps(pace)
    if schedule.fraction is not None:
        horizon = math.ceil(round(schedule.fraction * horizon, 6))  # 0.55 * 100 is 55, whatever binary floats say
    if warmup >= horizon:
        raise UserError(f"schedule: the warm-up of {warmup} steps does not end before the horizon of {horizon} steps; shorten it")
    return Rates(schedule.kind, schedule.peak, schedule.minimum, schedule.initial, warmup, horizon)
