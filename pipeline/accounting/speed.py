"""How fast a stage was, and where its time went."""

from collections.abc import Iterable
from statistics import median

from pipeline.accounting.recorded_runs import Content, RecordedStage
from pipeline.records.stage_records import EvaluationRecord, SaveRecord


class Speed(Content):
    """Medians over the recorded steps. wall_seconds: all steps, without evaluation and saving. mfu: 0 to 1."""

    stage: str
    samples_per_second: float | None
    tokens_per_second: float | None
    mfu: float | None
    wall_seconds: float
    evaluation_seconds: float | None
    save_seconds: float | None
    world_size: int | None
    device: str | None


def speed(stage: RecordedStage) -> Speed:
    """Of a training stage that has made a step."""
    steps, facts = stage.steps, stage.training
    mfu = _median(step.mfu for step in steps)
    return Speed(
        stage=stage.name,
        samples_per_second=_median(step.samples_per_second for step in steps),
        tokens_per_second=_median(step.tokens_per_second for step in steps),
        mfu=mfu if mfu is not None and mfu <= 1 else None,  # above 1 the peak was measured too low: nothing is known
        wall_seconds=sum(step.seconds * step.window for step in steps),
        evaluation_seconds=_sum(
            record.evaluation_seconds for record in stage.metrics if isinstance(record, EvaluationRecord)
        ),
        save_seconds=_sum(record.save_seconds for record in stage.metrics if isinstance(record, SaveRecord)),
        world_size=facts.settings.world_size if facts else None,
        device=facts.device if facts else None,
    )


def _median(values: Iterable[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return median(measured) if measured else None


def _sum(values: Iterable[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return sum(measured) if measured else None
