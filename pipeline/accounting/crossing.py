"""Where a curve of evaluations reaches a target, and whether it stays there."""

from collections.abc import Sequence
from typing import Literal

from pipeline.accounting.recorded_runs import Content, Evaluation

Metric = Literal["loss", "top1"]
METRICS: tuple[Metric, ...] = ("loss", "top1")
"""What runs are compared by: the evaluation loss in nats, or top-1 accuracy from 0 to 1."""


class Reach(Content):
    """Training FLOPs from which on a curve keeps the target (None: it does not); its best evaluation and its last
    value. lost: it reached the target, and left it again before its end."""

    flops: int | None
    best: Evaluation
    last: float
    lost: bool = False


def value(point: Evaluation, metric: Metric) -> float | None:
    """What was measured; None where that was not."""
    return point.loss if metric == "loss" else point.top1


def measured(points: Sequence[Evaluation], metric: Metric) -> list[tuple[Evaluation, float]]:
    """The evaluations that measured the metric, with its values."""
    return [(point, found) for point in points if (found := value(point, metric)) is not None]


def best(points: Sequence[Evaluation], metric: Metric) -> Evaluation:
    """The first of the best evaluations, of which one must have measured the metric."""
    order = 1 if metric == "loss" else -1
    return min(measured(points, metric), key=lambda each: order * each[1])[0]


def reach(points: Sequence[Evaluation], target: float, metric: Metric = "loss", *, kept: bool = True) -> Reach:
    """How a curve, one of whose points has measured the metric, relates to a target."""
    known = measured(points, metric)
    flops = crossing(points, target, metric, kept=kept)
    lost = flops is None and crossing(points, target, metric, kept=False) is not None
    return Reach(flops=flops, best=best(points, metric), last=known[-1][1], lost=lost)


def crossing(points: Sequence[Evaluation], target: float, metric: Metric = "loss", *, kept: bool = True) -> int | None:
    """FLOPs at which the metric reaches `target`, linear between two evaluations; None: not reached. kept: and leaves
    it no more; else where it is reached first."""
    known = measured(points, metric)
    met = [found <= target if metric == "loss" else found >= target for _, found in known]
    if kept:
        index = next((place + 1 for place in reversed(range(len(met))) if not met[place]), 0)
    else:
        index = next((place for place, good in enumerate(met) if good), len(met))
    if index == len(met):
        return None
    point, found = known[index]
    if index == 0:
        return point.flops
    before, above = known[index - 1]
    share = (above - target) / (above - found)
    return round(before.flops + share * (point.flops - before.flops))
