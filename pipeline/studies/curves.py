"""What an arm measured under one seed: its curve against FLOPs and seconds, and what came before it."""

from dataclasses import dataclass
from itertools import pairwise

from pipeline.accounting.crossing import Metric, crossing, value
from pipeline.accounting.lineage import Ancestor
from pipeline.accounting.recorded_runs import Content, Evaluation, RecordedStage, RecordReader
from pipeline.accounting.ways import Way, way
from pipeline.config.schema import FIT
from pipeline.records.stage_records import EvaluationRecord


class Point(Content):
    """An evaluation. flops: training FLOPs, seconds: of training steps, both since the arm's own training began; value:
    of the metric; smoothed: its running mean."""

    flops: int
    seconds: float
    value: float
    smoothed: float


@dataclass(frozen=True)
class Curve:
    """points: of an arm's own training; flops, seconds: of all of it; source_flops, source_seconds: of all training
    before it, growths that were fitted included; before, behind: what was measured last before the last growth, and
    first behind it; memory: bytes that rank 0 took at most, in any part of it."""

    points: list[Point]
    flops: int
    seconds: float
    source_flops: int
    source_seconds: float
    before: float | None
    behind: float | None
    memory: int | None
    finished: bool

    @property
    def final(self) -> float:
        """What the last evaluation measured."""
        return self.points[-1].value

    def flops_at(self, target: float, metric: Metric) -> int | None:
        """Own training FLOPs from which on the smoothed curve keeps the target; None: it does not. Linear between two
        evaluations, never beyond the last."""
        return crossing([_evaluation(point, metric) for point in self.points], target, metric)

    def seconds_at(self, flops: int) -> float:
        """Seconds of own training steps until so many FLOPs, linear between two evaluations."""
        for before, behind in pairwise(self.points):
            if before.flops <= flops <= behind.flops and behind.flops > before.flops:
                share = (flops - before.flops) / (behind.flops - before.flops)
                return before.seconds + share * (behind.seconds - before.seconds)
        return self.points[-1].seconds if flops >= self.points[-1].flops else self.points[0].seconds


def _evaluation(point: Point, metric: Metric) -> Evaluation:
    found = {"loss": point.smoothed} if metric == "loss" else {"loss": 0.0, metric: point.smoothed}
    return Evaluation(step=0, flops=point.flops, **found)


def curve(stage: RecordedStage, reader: RecordReader, metric: Metric, window: int) -> Curve | None:
    """Of the arm that a stage ends; None before its first evaluation. window: evaluations of the running mean."""
    found = way(stage, reader)
    evaluations = [point for point in found.evaluations if value(point, metric) is not None]
    if not evaluations:
        return None
    measured = [value(point, metric) or 0.0 for point in evaluations]
    smoothed, times = running_mean(measured, window), _seconds_of(found)
    points = [
        Point(flops=point.flops, seconds=time, value=held, smoothed=mean)
        for point, time, held, mean in zip(evaluations, times, measured, smoothed, strict=True)
    ]
    before, behind = _around_growth(found, metric)
    return Curve(
        points=points,
        flops=sum(part.training_flops or 0 for part in found.own),
        seconds=sum(_seconds(part, reader) for part in found.own),
        source_flops=found.source_flops or 0,
        source_seconds=sum(_seconds(part, reader) for part in found.sources),
        before=before,
        behind=behind,
        memory=_memory([*found.sources, *found.own]),
        finished=stage.finished,
    )


def running_mean(values: list[float], window: int) -> list[float]:
    """Centred, narrower towards the ends, so that the last value stays what it is."""
    far = [min(window // 2, index, len(values) - 1 - index) for index in range(len(values))]
    return [sum(values[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(far)]


def _seconds_of(found: Way) -> list[float]:
    """Seconds until each evaluation of the way's own parts."""
    times, offset = [], 0.0
    for part in found.own:
        if part.block == found.stage.block:
            times += [offset + _until(part, point.step) for point in part.evaluations]
        offset += _until(part, part.last_step)
    return times


def _until(part: Ancestor, step: int) -> float:
    """Seconds of the training steps of a part until one of them."""
    steps = part.stage.steps if part.stage else []
    return sum(record.seconds * record.window for record in steps if record.step <= step)


def _seconds(part: Ancestor, reader: RecordReader) -> float:
    """Seconds of training steps of a part; of a growth, those of its fit."""
    if part.kind == "expand" and part.stage:
        fit = reader.stage(part.stage.path.with_name(part.stage.name + FIT))
        return sum(record.seconds * record.window for record in fit.steps)
    return _until(part, part.last_step)


def _around_growth(found: Way, metric: Metric) -> tuple[float | None, float | None]:
    parts = [part for part in [*found.sources, *found.own] if part.evaluations]
    if not found.growths or len(parts) < 2:
        return None, None
    return value(parts[-2].evaluations[-1], metric), value(parts[-1].evaluations[0], metric)


def _memory(parts: list[Ancestor]) -> int | None:
    records = [record for part in parts if part.stage for record in part.stage.metrics]
    known = [record.peak_memory for record in records if isinstance(record, EvaluationRecord) and record.peak_memory]
    return max(known, default=None)
