"""What happened to a training stage that was not planned: a loss or a gradient norm out of bounds, and what was done.

`events.jsonl` is never cut: rewinds in it decide which samples later steps take. `recent.jsonl` holds the losses and
norms before each save, from which a resumed run judges as one that was not interrupted.
"""

from typing import Any, Literal

from pydantic import TypeAdapter

from pipeline.records.stage_records import Records, StageRecord

Action = Literal["warn", "skip", "rewind", "abort"]
Problem = Literal["nan", "infinite", "spike", "overflow"]


class EventRecord(StageRecord):
    """`quantity` was out of bounds in the step that ends at `step`. value, limit: None where the value is no number; of
    an overflow in fp16, value is the loss scale.

    back_to: the checkpoint that a rewind went back to (0: the stage's start); data_step: from there on the samples are
    those which this step of an undisturbed run takes, and the following ones.
    """

    kind: Literal["unstable"] = "unstable"
    quantity: Literal["loss", "gradient norm"]
    problem: Problem
    value: float | None
    limit: float | None
    action: Action
    back_to: int | None = None
    data_step: int | None = None

    @property
    def words(self) -> str:
        """What was seen, such as `loss 9.2 above 4.1`."""
        if self.problem == "overflow":
            return f"gradients infinite in fp16 by a loss scale of {self.value:g}"
        if self.value is None or self.limit is None:
            return f"{self.quantity} {'not a number' if self.problem == 'nan' else 'infinite'}"
        return f"{self.quantity} {self.value:.4g} above {self.limit:.4g}"


class RecentRecord(StageRecord):
    """The last losses and gradient norms until `step`, oldest first, and how many updates in a row were skipped."""

    kind: Literal["recent"] = "recent"
    losses: list[float]
    norms: list[float]
    skipped: int


class Events(Records[EventRecord]):
    """events.jsonl. A step that is done again after a kill tells the same event, which is recorded once."""

    adapter = TypeAdapter(EventRecord)

    def add(self, event: EventRecord) -> None:
        self.mend()
        if event not in list(self):
            self.append(event)
            self.sync()

    @property
    def rewinds(self) -> list[EventRecord]:
        return [event for event in self if event.action == "rewind"]

    def upgraded(self, content: dict[str, Any], previous_step: int) -> dict[str, Any]:
        """Format 1 had no such file."""
        return content


class Recent(Records[RecentRecord]):
    """recent.jsonl."""

    adapter = TypeAdapter(RecentRecord)

    def at(self, step: int) -> RecentRecord | None:
        """The newest of the records of `step`, None where there is none: an older version saved that."""
        return next((record for record in reversed(list(self)) if record.step == step), None)

    def upgraded(self, content: dict[str, Any], previous_step: int) -> dict[str, Any]:
        """Format 1 had no such file."""
        return content
