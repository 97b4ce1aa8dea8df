"""The names by which MosaicML Composer logs what a stage records, and `lemon/…` for what it has no name for.

Which of its files has which name, and where a quantity is not quite the same: docs/trackers.md.
"""

from pipeline.optim.parameter_groups import KINDS
from pipeline.records.stage_facts import TrainFacts
from pipeline.records.stage_records import EvaluationRecord, MetricsRecord, SaveRecord, TrainingRecord

OPTIMIZERS = {"adamw": "AdamW", "sgd": "SGD"}
"""torch's classes by kind; one that trains groups at several rates has no rate to be named."""
HOUR = 3600.0
"""Seconds in the unit of Composer's times."""


class ComposerNames:
    """Of one stage. It is asked for every record in order, from the stage's first one on: times are sums. kind: of the
    data, text or images."""

    def __init__(self, facts: TrainFacts, kind: str):
        self._facts, self._text = facts, kind == "text"
        self._rate = _rate_name(facts)
        self._training = self._validation = 0.0

    def of(self, record: MetricsRecord) -> dict[str, float]:
        """What a record says, by name."""
        if isinstance(record, TrainingRecord):
            return self._of_training(record)
        return self._of_evaluation(record) if isinstance(record, EvaluationRecord) else _of_save(record)

    def _of_training(self, record: TrainingRecord) -> dict[str, float]:
        self._training += record.seconds * record.window / HOUR
        known = {"l2_norm/grad/global": record.grad_norm, "throughput/device/mfu": record.mfu}
        return {
            "loss/train/total": record.loss,
            self._rate: record.lr,
            **self._throughput(record),
            **{name: value for name, value in known.items() if value is not None},
            **self._progress(record.step),
            "time/train": self._training,
            "time/val": self._validation,
            "time/total": self._training + self._validation,
        }

    def _throughput(self, record: TrainingRecord) -> dict[str, float]:
        """Of all devices, and of one: by what the start was that has taken the step."""
        start = self._facts.start_of(record.step)
        speeds = {
            "batches_per_sec": 1 / record.seconds,
            "samples_per_sec": record.samples_per_second,
            **({"tokens_per_sec": record.tokens_per_second} if self._text else {}),
            "flops_per_sec": start.flops_per_step.train / record.seconds,
        }
        whole = {f"throughput/{name}": speed for name, speed in speeds.items()}
        ranks = start.settings.world_size
        return whole | {f"throughput/device/{name}": speed / ranks for name, speed in speeds.items()}

    def _progress(self, step: int) -> dict[str, float]:
        done: dict[str, float] = {"time/batch": step, "time/sample": step * self._facts.samples_per_step}
        return done | ({"time/token": step * self._facts.tokens_per_step} if self._text else {})

    def _of_evaluation(self, record: EvaluationRecord) -> dict[str, float]:
        self._validation += (record.evaluation_seconds or 0.0) / HOUR
        loss = "LanguageCrossEntropy" if self._text else "CrossEntropy"
        known = {loss: record.eval_loss, "LanguagePerplexity": record.perplexity, "MulticlassAccuracy": record.top1}
        return {f"metrics/eval/{name}": value for name, value in known.items() if value is not None}


def _of_save(record: SaveRecord) -> dict[str, float]:
    """A save is recorded when it is published, which may be behind later steps: its own step goes with it."""
    published = {} if record.published_seconds is None else {"lemon/save/published_seconds": record.published_seconds}
    return {"lemon/save/step": record.step, "lemon/save/pause_seconds": record.save_seconds, **published}


def _rate_name(facts: TrainFacts) -> str:
    """Composer's name where all groups have the schedule's rate."""
    optimizer = facts.settings.optimizer
    kind, factors = OPTIMIZERS.get(str(optimizer.get("kind", "adamw"))), optimizer.get("rates") or {}
    alike = all(factors.get(each, 1.0) == 1.0 for each in KINDS)
    return f"lr-{kind}/group0" if kind and alike else "lemon/lr/schedule"
