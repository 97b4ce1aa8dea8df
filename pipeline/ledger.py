"""What a stage records while it runs, as JSON lines; `accounting` reads it.

A stage keeps two files. `metrics.jsonl`: what was measured, one object per step (`step, loss, lr, …`) or
evaluation (`step, eval_loss, …`). `ledger.jsonl`: what was spent since the previous entry of its kind
(`step, kind, flops, samples, tokens`), FLOPs as integers, so that stages add up exactly.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

TRAINING = ("train", "recompute")
"""Kinds of cost that a published saving counts; the others (evaluate, verify, grow) are named beside it."""


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
