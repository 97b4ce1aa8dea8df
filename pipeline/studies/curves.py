"""What an arm measured under one seed: its curve against FLOPs and seconds, and what came before it."""

from dataclasses import dataclass
from itertools import pairwise

from pipeline.accounting.baselines import decayed
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
    before it, growths that were fitted included, None where it is not recorded, of which `unknown` names the
    checkpoint; before, behind: what was measured last before the last growth, and first behind it; memory: bytes that
    rank 0 took at most, in any part of it; machines: devices and ranks of all parts; finished, decayed: whether it has
    ended, and so has its schedule."""

    stage: RecordedStage
    points: list[Point]
    flops: int
    seconds: float
    source_flops: int | None
    source_seconds: float
    unknown: str | None
    before: float | None
    behind: float | None
    memory: int | None
    machines: frozenset[str]
    finished: bool
    decayed: bool

    @property
    def final(self) -> float:
        """What the last evaluation measured."""
        return self.points[-1].value

    @property
    def all_flops(self) -> int | None:
        """With the sources' training."""
        return None if self.source_flops is None else self.flops + self.source_flops

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
    parts = [*found.sources, *found.own]
    points = _points(found, reader, metric, window)
    if not points or stage.training is None:
        return None
    before, behind = _around_growth(found, metric)
    return Curve(
        stage=stage,
        points=points,
        flops=sum(part.training_flops or 0 for part in found.own),
        seconds=sum(_seconds(part, reader) for part in found.own),
        source_flops=found.source_flops,
        source_seconds=sum(_seconds(part, reader) for part in found.sources),
        unknown=found.unknown,
        before=before,
        behind=behind,
        memory=_memory(parts),
        machines=frozenset(machine for part in parts for machine in _machines(part)),
        finished=stage.finished,
        decayed=stage.finished and decayed(stage.training),
    )


def _points(found: Way, reader: RecordReader, metric: Metric, window: int) -> list[Point]:
    """The evaluations of a way's own parts that measured the metric."""
    timed = zip(found.evaluations, _times(found, reader), strict=True)
    known = [(point, time, held) for point, time in timed if (held := value(point, metric)) is not None]
    means = running_mean([held for _, _, held in known], window)
    return [
        Point(flops=point.flops, seconds=time, value=held, smoothed=mean)
        for (point, time, held), mean in zip(known, means, strict=True)
    ]


def running_mean(values: list[float], window: int) -> list[float]:
    """Centred, narrower towards the ends, so that the last value stays what it is."""
    far = [min(window // 2, index, len(values) - 1 - index) for index in range(len(values))]
    return [sum(values[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(far)]


def _times(found: Way, reader: RecordReader) -> list[float]:
    """Seconds until each evaluation of the way's own parts."""
    times, offset = [], 0.0
    for part in found.own:
        if part.block == found.stage.block:
            times += [offset + _until(part, point.step) for point in part.evaluations]
        offset += _seconds(part, reader)
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
    """Where both were evaluated in blocks of the same length."""
    both = found.around_growth
    if both is None or both[0].block != both[1].block or not (both[0].evaluations and both[1].evaluations):
        return None, None
    return value(both[0].evaluations[-1], metric), value(both[1].evaluations[0], metric)


def _machines(part: Ancestor) -> list[str]:
    facts = part.stage.training if part.stage else None
    return [f"{start.settings.world_size} x {start.device}" for start in facts.starts] if facts else []


def _memory(parts: list[Ancestor]) -> int | None:
    records = [record for part in parts if part.stage for record in part.stage.metrics]
    known = [record.peak_memory for record in records if isinstance(record, EvaluationRecord) and record.peak_memory]
    return max(known, default=None)
