"""The training steps since the last record, of which the record tells the means."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True)
class WindowMeans:
    """Means over `steps` steps; grad_norm: None where a step had none. What is no number is left out where there is
    another value: a stage's events tell of it."""

    steps: int
    loss: float
    grad_norm: float | None
    seconds: float


class Window:
    """Loss, gradient norm and seconds of the steps since the last record."""

    def __init__(self) -> None:
        self._steps: list[tuple[float, float | None, float]] = []

    def add(self, loss: float, norm: float | None, seconds: float) -> None:
        self._steps.append((loss, norm, seconds))

    def close(self) -> WindowMeans:
        """The means over the window; a new one begins."""
        losses, norms, seconds = zip(*self._steps, strict=True)
        self._steps = []
        known = [norm for norm in norms if norm is not None]
        norm = _mean(known) if len(known) == len(norms) else None
        return WindowMeans(len(losses), _mean(losses), norm, fmean(seconds))


def _mean(values: Sequence[float]) -> float:
    return fmean([value for value in values if math.isfinite(value)] or values)
