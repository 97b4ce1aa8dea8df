"""What a stage records while it runs, as JSON lines; `accounting` reads it.

A stage keeps two files. `metrics.jsonl`: what was measured, one object for each
    training record  step, loss, lr, grad_norm, seconds, samples_per_second, tokens_per_second, mfu, window
    evaluation       step, eval_loss, perplexity or top1, evaluation_seconds
    checkpoint       step, save_seconds
A training record stands for the `window` steps up to `step`: loss, norm, seconds and speeds are means over them, `lr`
is the last one's; `seconds` is the time of one step, without evaluation and saving. `ledger.jsonl`: what was spent
since the previous entry of its kind (`step, kind, flops, samples, tokens`), FLOPs as integers, so that stages add up
exactly.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

TRAINING = ("train", "recompute")
"""Kinds of cost that a published saving counts; the others (evaluate, verify, grow) are named beside it."""


class Window:
    """The training steps since the last record, of which the record tells the means."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float | None, float]] = []

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, loss: float, norm: float | None, seconds: float) -> None:
        self.steps.append((loss, norm, seconds))

    def close(self) -> dict[str, float | None]:
        """The means of loss, grad_norm (None where a step had none) and seconds; a new window begins."""
        losses, norms, seconds = zip(*self.steps, strict=True)
        self.steps = []
        return {"loss": fmean(losses), "grad_norm": None if None in norms else fmean(norms), "seconds": fmean(seconds)}


class Records:
    """An append-only JSONL file that a resumed run can cut back to a step."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, **record: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def __iter__(self) -> Iterator[dict]:
        if self.path.exists():
            with self.path.open(encoding="utf-8") as file:
                for line in file:
                    if line.endswith("\n"):  # a killed writer may leave half a line
                        yield json.loads(line)

    def truncate(self, step: int) -> None:
        """Drop what lies after `step` (and a half-written last line), atomically."""
        kept = [json.dumps(record) + "\n" for record in self if record["step"] <= step]
        draft = self.path.with_suffix(".draft")
        draft.write_text("".join(kept), encoding="utf-8")
        os.replace(draft, self.path)
