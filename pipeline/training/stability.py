"""What a training stage does where its loss or gradient norm is out of bounds (config/stability.py).

The loss is the mean over all ranks and the norm that of all gradients, so all ranks decide alike without asking each
other. All that a decision rests on is a function of the steps before: a resumed stage decides as one that was not
interrupted.
"""

from dataclasses import dataclass

from pipeline.config.stability import Stability
from pipeline.errors import UserError
from pipeline.records.event_records import Action, EventRecord, RecentRecord
from pipeline.training.data_order import DataOrder
from pipeline.training.process_group import of_rank_0
from pipeline.training.spikes import LOSS, NORM, Finding, SpikeDetector
from pipeline.training.stage import TrainingPlan

ADVICE = "lower schedule.peak, lengthen the warm-up, or clip"
DONE = {
    "warn": "it goes on",
    "skip": "its update is left out",
    "rewind": "back to step {back_to}, and on without the samples since then",
    "abort": "the stage ends",
}
"""What each action does, in words."""


@dataclass(frozen=True)
class Verdict:
    """An event, and what else is to be said of it."""

    event: EventRecord
    refusal: str | None = None

    @property
    def action(self) -> Action:
        return self.event.action

    @property
    def words(self) -> str:
        """For the log."""
        done = DONE[self.action].format(back_to=self.event.back_to)
        return f"{self.event.words} at step {self.event.step}: {done}"


class Stabilizer:
    """Judges every step of one stage."""

    def __init__(self, settings: Stability, recent: RecentRecord | None, order: DataOrder):
        self.settings, self.order = settings, order
        past = ((LOSS, recent.losses), (NORM, recent.norms)) if recent else ((LOSS, ()), (NORM, ()))
        self.losses, self.norms = (SpikeDetector(settings.window, settings.sigmas, *each) for each in past)
        self.skipped = recent.skipped if recent else 0

    def refuses(self, loss: float, norm: float | None) -> bool:
        """Whether the update of a step is to be left out. Asked before it is made."""
        found = self._finding(loss, norm)
        if found is None:
            return False
        action = self._configured(found[1])
        return action == "skip" or (action == "warn" and found[1].problem != "spike")

    def judge(self, step: int, loss: float, norm: float | None, newest: int) -> Verdict | None:
        """Take note of the step that ends at `step`; what is to be done about it. newest: the step of the newest
        checkpoint, 0 where there is none."""
        found = self._finding(loss, norm)
        self.losses.add(loss)
        self.norms.add(norm)
        action = self._configured(found[1]) if found else "ignore"
        self.skipped = self.skipped + 1 if action == "skip" else 0
        if found is None or action == "ignore":
            return None
        return self._verdict(step, *found, action, newest)

    def recent(self, step: int) -> RecentRecord:
        """From which a stage that goes on behind `step` judges as this one does."""
        losses, norms = list(self.losses.values), list(self.norms.values)
        return RecentRecord(step=step, losses=losses, norms=norms, skipped=self.skipped)

    def _finding(self, loss: float, norm: float | None) -> tuple[str, Finding] | None:
        """The first thing that is wrong; what is no number comes before a spike."""
        both = ("loss", self.losses.judge(loss)), ("gradient norm", self.norms.judge(norm))
        found = [(quantity, finding) for quantity, finding in both if finding]
        return min(found, key=lambda each: each[1].problem == "spike", default=None)

    def _configured(self, finding: Finding) -> str:
        return self.settings.spike if finding.problem == "spike" else self.settings.not_finite

    def _verdict(self, step: int, quantity: str, finding: Finding, action: str, newest: int) -> Verdict:
        refusal = {"abort": ADVICE, "skip": self._too_many_skips(), "rewind": self._too_many_rewinds(newest)}.get(
            action
        )
        event = EventRecord.model_validate(
            {
                "step": step,
                "quantity": quantity,
                "problem": finding.problem,
                "value": finding.value,
                "limit": finding.limit,
                "action": "abort" if refusal else action,
            }
        )
        if event.action == "rewind":
            event = event.model_copy(update={"back_to": newest, "data_step": self.order.data_step(step - 1) + 1})
        return Verdict(event, refusal)

    def _too_many_skips(self) -> str | None:
        most = self.settings.skips
        return f"{most} updates before it were skipped (stability.skips); {ADVICE}" if self.skipped > most else None

    def _too_many_rewinds(self, newest: int) -> str | None:
        count = self.order.rewinds_to(newest)
        if count < self.settings.rewinds:
            return None
        return f"{count} rewinds to step {newest} (stability.rewinds) have not helped; {ADVICE}"


def overflow(step: int, scale: float) -> Verdict:
    """What is said of a step whose gradients became infinite in fp16 by the loss scale, which DeepSpeed halves: an
    update that is left out and counts among none of those that were wrong."""
    event = {"step": step, "quantity": "gradient norm", "problem": "overflow", "value": scale, "limit": None}
    return Verdict(EventRecord.model_validate({**event, "action": "skip"}))


def stabilizer_at(plan: TrainingPlan, step: int) -> Stabilizer:
    """That of a stage which goes on behind `step`, on every rank from what rank 0 reads. A collective call."""
    recent, rewinds = of_rank_0(lambda: (plan.folder.recent.at(step), plan.folder.events.rewinds))
    return Stabilizer(plan.stage.stability, recent, DataOrder(rewinds))


def stopped_by(stage: str, verdict: Verdict, loss: float, norm: float | None) -> UserError:
    """The error that ends a stage."""
    event, limit = verdict.event, verdict.event.limit
    bound = "" if limit is None else f" ({event.words})"
    return UserError(
        f"stage '{stage}': loss {loss}, gradient norm {norm} at step {event.step}{bound}; {verdict.refusal}"
    )
