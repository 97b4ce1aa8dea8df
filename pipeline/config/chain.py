"""Stages that go on with one schedule: what the next one must have like the training before it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.schema import TrainStage

OWN = {"steps", "continues"}
"""Keys of a schedule that each stage has for itself."""


def problems(stage: "TrainStage", before: "TrainStage | None") -> Iterator[str]:
    """What a stage that goes on with a schedule lacks, or has otherwise than `before`, the training before it."""
    where = f"stages.{stage.name}.schedule"
    if not stage.schedule.continues:
        return
    if before is None:
        what = f"'{stage.origin}' is no stage of this config" if stage.origin else "it starts from fresh weights"
        yield f"{where}.continue: {what}; leave it out, or start from what a stage has trained"
        return
    mine, theirs = (each.schedule.model_dump(mode="json", by_alias=False) for each in (stage, before))
    for key in sorted({*mine, *theirs} - OWN):
        if mine.get(key) != theirs.get(key):
            has = f"'{before.name}' has {theirs.get(key)}, this {mine.get(key)}"
            yield f"{where}.{key}: {has}; one that goes on has the same"
    unit = stage.schedule.horizon.unit
    for key in ("warmup", "decay"):
        if (part := getattr(stage.schedule, key, None)) and part.amount and part.unit != unit:
            why = "models differ in what a step is worth"
            yield f"{where}.{key}: {part} beside a horizon in {unit}, and {why}; say it in {unit}"
