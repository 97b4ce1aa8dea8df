"""What was spent and what it bought: JSONL records, exact FLOPs totals, the crossing of a target loss.

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


def spent_until(ledger: Records, step: int) -> int:
    """Training FLOPs (forward, backward, recomputation) of the first `step` steps."""
    return sum(e["flops"] for e in ledger if e["kind"] in TRAINING and e["step"] <= step)


def curve(metrics: Records, ledger: Records) -> list[tuple[int, int, float]]:
    """(step, training FLOPs, evaluation loss) at every evaluation, in order."""
    costs = sorted((e["step"], e["flops"]) for e in ledger if e["kind"] in TRAINING)
    points, total, next_cost = [], 0, 0
    for record in metrics:
        if "eval_loss" not in record:
            continue
        while next_cost < len(costs) and costs[next_cost][0] <= record["step"]:
            total += costs[next_cost][1]
            next_cost += 1
        points.append((record["step"], total, record["eval_loss"]))
    return points


def crossing(points: list[tuple[int, int, float]], target: float) -> int | None:
    """FLOPs at which the loss first reaches `target`, linear between two evaluations; None: not reached."""
    before: tuple[int, float] | None = None
    for _, flops, loss in points:
        if loss <= target:
            if before is None or before[1] == loss:
                return flops
            share = (before[1] - target) / (before[1] - loss)
            return round(before[0] + share * (flops - before[0]))
        before = (flops, loss)
    return None
