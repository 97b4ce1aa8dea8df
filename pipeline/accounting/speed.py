"""How fast a stage was, and where its time went."""

from statistics import median

from pipeline.accounting.recorded_runs import Content, RecordedStage


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
    mfu = _median(stage.steps, "mfu")
    return Speed(
        stage=stage.name,
        samples_per_second=_median(stage.steps, "samples_per_second"),
        tokens_per_second=_median(stage.steps, "tokens_per_second"),
        mfu=mfu if mfu is not None and mfu <= 1 else None,  # above 1 the peak was measured too low: nothing is known
        wall_seconds=_wall_seconds(stage.steps),
        evaluation_seconds=_sum(stage.metrics, "evaluation_seconds"),
        save_seconds=_sum(stage.metrics, "save_seconds"),
        world_size=stage.facts["settings"].get("world_size"),
        device=stage.facts.get("device"),
    )


def _median(records: list[dict], key: str) -> float | None:
    known = [record[key] for record in records if record.get(key) is not None]
    return median(known) if known else None


def _sum(records: list[dict], key: str) -> float | None:
    known = [record[key] for record in records if key in record]
    return sum(known) if known else None


def _wall_seconds(steps: list[dict]) -> float:
    """`seconds` is the mean of the `window` steps that end with the record. Records from before there were windows have
    the time of their own step alone, which then stands for the steps since the record before."""
    ends = [0, *(record["step"] for record in steps)]
    since = [max(1, end - before) for before, end in zip(ends, ends[1:], strict=False)]
    return sum(record["seconds"] * record.get("window", gap) for record, gap in zip(steps, since, strict=True))
