"""What a stage records while it runs, as JSON lines; `accounting` reads it.

`metrics.jsonl` holds what was measured, `ledger.jsonl` what was spent. Each line has its own format number: a stage
that an older version began goes on in the same files.
"""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from pipeline.errors import UserError
from pipeline.records.formats import FORMAT, Recorded, explained, require_readable

BESIDE = ("recompute", "make", "optimizer")
"""Kinds of cost of a training step besides `train`, by their names in `StepFlops`."""
TRAINING = ("train", *BESIDE)
"""Kinds of cost that a published saving counts; the others (lost, evaluate, verify, grow) are named beside it."""
RESTART, LOST = "restart", "lost"
"""The kind of the line that a start adds where work behind its step is to be done again, and what accounts call that
work."""


class StageRecord(Recorded):
    """What was recorded at `step`."""

    step: int


class TrainingRecord(StageRecord):
    """The `window` steps up to `step`: loss, norm, seconds and speeds are means over them, `lr` is the last one's.
    seconds: the time of one step, without evaluation and saving; mfu: 0 to 1, None where the peak is not known."""

    kind: Literal["train"] = "train"
    loss: float
    lr: float
    grad_norm: float | None
    seconds: float
    samples_per_second: float
    tokens_per_second: float
    mfu: float | None
    window: int


class EvaluationRecord(StageRecord):
    """The whole evaluation set at `step`. perplexity: of text; top1: of images, 0 to 1; peak_memory: the most bytes
    that rank 0 has taken since it started, device memory on GPUs. evaluation_seconds, peak_memory: None where they were
    not measured."""

    kind: Literal["evaluate"] = "evaluate"
    eval_loss: float
    perplexity: float | None = None
    top1: float | None = None
    evaluation_seconds: float | None = None
    peak_memory: int | None = None


class SaveRecord(StageRecord):
    """The checkpoint of `step` was published. save_seconds: for which the training stood still; published_seconds: from
    its begin to that, None where the training waited for it and nothing else was measured."""

    kind: Literal["save"] = "save"
    save_seconds: float
    published_seconds: float | None = None


class LedgerEntry(StageRecord):
    """What was spent since the previous entry of its kind, as exact integers, so that stages add up exactly.
    kind: train, recompute, make (the weights of a model, while its growth is fitted), optimizer (the products of Muon's
    updates), evaluate, evaluate-make, grow, verify; restart: the stage went on from `step`, what stands above behind it
    is lost."""

    kind: str
    flops: int = Field(ge=0)
    samples: int = Field(ge=0)
    tokens: int = Field(ge=0)


MetricsRecord = TrainingRecord | EvaluationRecord | SaveRecord
Record = TypeVar("Record", bound=StageRecord)


class Records(ABC, Generic[Record]):
    """A JSONL file that grows line by line."""

    adapter: TypeAdapter[Record]

    def __init__(self, path: Path):
        self.path = path

    def append(self, *records: Record) -> None:
        """Add records, all of them by one write, behind the last whole line."""
        with self.path.open("ab+") as file:
            if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                self.mend()
            file.write("".join(map(_line, records)).encode())

    def __iter__(self) -> Iterator[Record]:
        """Every record in order. Raises UserError for a newer format, or a line that is no record."""
        previous_step = 0
        for number, content in self._objects():
            record = self._parse(number, content, previous_step)
            previous_step = record.step
            yield record

    def sync(self) -> None:
        """Have what was appended reach the disk."""
        with self.path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def mend(self) -> None:
        """Drop the half of a line that a killed writer, or a full disk, has left at the end."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The JSON object of every line with its number; a killed writer may leave half a line at the end."""
        if not self.path.exists():
            return
        try:
            with self.path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith("\n"):
                        yield number, json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path}: not valid JSONL ({error}); the file is damaged") from error

    def _parse(self, number: int, content: dict[str, Any], previous_step: int) -> Record:
        place = f"{self.path}, line {number}"
        try:
            if "format" not in content:
                content = {**self.upgraded(content, previous_step), "format": FORMAT}
            require_readable(place, content["format"])
            return self.adapter.validate_python(content)
        except (ValidationError, TypeError, KeyError) as error:
            reason = explained(error) if isinstance(error, ValidationError) else str(error)
            raise UserError(f"{place}: not a record of a stage ({reason}); the file is damaged") from error

    @abstractmethod
    def upgraded(self, content: dict[str, Any], previous_step: int) -> dict[str, Any]:
        """A record of format 1, which named no format, as format 2 has it. previous_step: of the line before."""


class Metrics(Records[MetricsRecord]):
    """metrics.jsonl, which a resumed run cuts back to the step from which it goes on."""

    adapter = TypeAdapter(Annotated[MetricsRecord, Field(discriminator="kind")])

    def truncate(self, step: int) -> None:
        """Drop what lies after `step` (and a half-written last line), atomically."""
        lines = [_line(record) for record in self if record.step <= step]
        draft = self.path.with_suffix(".draft")
        with draft.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, self.path)

    def upgraded(self, content: dict[str, Any], previous_step: int) -> dict[str, Any]:
        """Format 1 had no `kind`. Its first records had no `window` either, and loss and time of a single step, which
        stands for all steps since the line before."""
        if "loss" in content:
            return {"kind": "train", "window": max(1, content["step"] - previous_step), **content}
        return {"kind": "evaluate" if "eval_loss" in content else "save", **content}


class Ledger(Records[LedgerEntry]):
    """ledger.jsonl, from which no line is ever removed."""

    adapter = TypeAdapter(LedgerEntry)

    def restart(self, step: int) -> None:
        """Mark what was spent behind `step` as lost: it is going to be done again. Raises UserError as reading does."""
        self.mend()
        if any(entry.step > step for entry in self.accounted() if entry.kind != LOST):
            self.append(LedgerEntry(step=step, kind=RESTART, flops=0, samples=0, tokens=0))

    def accounted(self) -> list[LedgerEntry]:
        """Every entry in order, without restarts; what they have lost has the kind `lost`, and belongs to the first
        step that was done again. Raises UserError as reading does."""
        entries: list[LedgerEntry] = []
        for entry in self:
            if entry.kind == RESTART:
                entries = [_lost(each, entry.step) for each in entries]
            else:
                entries.append(entry)
        return entries

    def upgraded(self, content: dict[str, Any], previous_step: int) -> dict[str, Any]:
        """Format 1 had the same keys."""
        return content


def _lost(entry: LedgerEntry, restart: int) -> LedgerEntry:
    """An entry after a restart from the step `restart`."""
    spent_before = entry.step <= restart or entry.kind == LOST
    return entry if spent_before else entry.model_copy(update={"kind": LOST, "step": restart + 1})


def _line(record: Recorded) -> str:
    return json.dumps(record.model_dump()) + "\n"
