"""Is a loss or a gradient norm out of bounds, judged by the values before it?"""

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from pipeline.records.event_records import Problem

NORMAL = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


@dataclass(frozen=True)
class LeastRise:
    """What a value must have risen above the median by, whatever the deviation: `by`, and `share` of the median. The
    values of a model that is nearly done lie so close together that one hard batch is many deviations off."""

    by: float = 0.0
    share: float = 0.0


LOSS, NORM = LeastRise(by=0.5, share=0.01), LeastRise(share=4.0)
"""Half a nat (a cross-entropy, times 1.65 in perplexity); a gradient norm five times the median: where a model begins
to learn, its norm rises to four times that of the steps before."""


@dataclass(frozen=True)
class Finding:
    """What is wrong with a value. value, limit: None where the value is no finite number."""

    problem: Problem
    value: float | None = None
    limit: float | None = None


class SpikeDetector:
    """The running median of the last `window` finite values, and how far above it a spike begins: `sigmas` standard
    deviations, estimated from the median absolute deviation, which a few spikes in the window do not move, and `least`
    at least."""

    def __init__(self, window: int, sigmas: float, least: LeastRise, values: Iterable[float] = ()):
        self.sigmas, self.least = sigmas, least
        self.values = deque(values, maxlen=window)

    @property
    def limit(self) -> float | None:
        """None until the window is full: the first steps of a training are steep."""
        if len(self.values) < (self.values.maxlen or 0):
            return None
        middle = median(self.values)
        deviation = NORMAL * median(abs(value - middle) for value in self.values)
        return middle + max(self.sigmas * deviation, self.least.by, self.least.share * abs(middle))

    def judge(self, value: float | None) -> Finding | None:
        """None where there is nothing wrong, or no value. Judging leaves the window alone."""
        if value is None:
            return None
        if not math.isfinite(value):
            return Finding("nan" if math.isnan(value) else "infinite")
        limit = self.limit
        return Finding("spike", value, limit) if limit is not None and value > limit else None

    def add(self, value: float | None) -> None:
        """Spikes count too: a curve that has moved to another level for good is no spike for long."""
        if value is not None and math.isfinite(value):
            self.values.append(value)
