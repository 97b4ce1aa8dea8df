"""`times.jsonl` of a stage: where its time went, start by start. It is never cut: what is done again was time too."""

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from pipeline.records.stage_records import Records, StageRecord

STEPPING = ("data", "forward", "backward", "forward_backward", "communication", "optimizer")
"""What a step is made of; forward_backward: of releases that did not tell the two apart."""
KINDS = ("start", *STEPPING, "compile", "evaluate", "save", "other")
"""What a worker does, as rank 0 measures it."""


class StartRecord(StageRecord):
    """A start goes on from the checkpoint of `step` (-1: from the beginning), and what stands above behind it was in
    vain. began: seconds since the epoch; unrecorded: the time that the start before has worked behind its last line."""

    kind: Literal["start"] = "start"
    began: float
    unrecorded: float


class SpentRecord(StageRecord):
    """The time until `step` since the line before, by kind. until: seconds since the epoch."""

    kind: Literal["spent"] = "spent"
    seconds: dict[str, float]
    until: float


class Times(Records[StartRecord | SpentRecord]):
    """times.jsonl."""

    adapter = TypeAdapter(Annotated[StartRecord | SpentRecord, Field(discriminator="kind")])

    @property
    def last(self) -> float | None:
        """When the last line was written, in seconds since the epoch; None where there is none."""
        moments = [record.began if isinstance(record, StartRecord) else record.until for record in self]
        return moments[-1] if moments else None

    def upgraded(self, content: dict[str, Any], previous_step: int) -> dict[str, Any]:
        """Format 1 had no such file."""
        return content
