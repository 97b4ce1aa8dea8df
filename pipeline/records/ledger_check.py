"""A ledger against what the stage says of itself: FLOPs of a step times steps, no line lost, doubled or changed. What a
step costs is what it cost in the start that made it, and what was lost is not looked at."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UserError
from pipeline.records.stage_facts import TrainFacts
from pipeline.records.stage_records import BESIDE, LedgerEntry

WORDS = {"train": "training", "recompute": "recomputation", "make": "making of weights", "optimizer": "Muon's products"}
"""Kinds of cost in messages."""


def require_agreement(path: Path, ledger: Sequence[LedgerEntry], facts: TrainFacts, until: int | None = None) -> None:
    """Raises UserError where the entries of a training stage's ledger, read from `path`, are not what its steps cost.
    until: the step that they must reach; None: the stage's end where it is finished, else wherever they end."""
    entries = [entry for entry in ledger if entry.kind == "train"]
    previous, besides = 0, {kind: _by_step(path, ledger, kind) for kind in BESIDE}
    for entry in entries:
        count = entry.step - previous
        if count <= 0:
            raise _wrong(path, f"step {entry.step} of training follows step {previous}")
        cost = facts.start_of(entry.step).flops_per_step
        _require_cost(path, entry, count * cost.train)
        for kind, by_step in besides.items():
            if entry.step in by_step:
                _require_cost(path, by_step.pop(entry.step), count * getattr(cost, kind))
            elif kind != "recompute" and getattr(cost, kind):
                raise _wrong(path, f"training until step {entry.step} has no {WORDS[kind]}")
        previous = entry.step
    for kind, by_step in besides.items():
        if by_step:
            raise _wrong(path, f"step {min(by_step)} has {WORDS[kind]} and no training")
    if len({entry.flops for entry in ledger if entry.kind == "evaluate"}) > 1:
        raise _wrong(path, "evaluations of the same data have different FLOPs")
    end = facts.end if until is None and facts.status == "finished" else until
    if end is not None and previous != end:
        raise _wrong(path, f"its training ends at step {previous}, that of the stage at step {end}")


def _by_step(path: Path, ledger: Sequence[LedgerEntry], kind: str) -> dict[int, LedgerEntry]:
    entries = [entry for entry in ledger if entry.kind == kind]
    by_step = {entry.step: entry for entry in entries}
    if len(by_step) != len(entries):
        raise _wrong(path, f"a step has {WORDS[kind]} twice")
    return by_step


def _require_cost(path: Path, entry: LedgerEntry, cost: int) -> None:
    if entry.flops != cost:
        what = WORDS[entry.kind]
        raise _wrong(path, f"{what} until step {entry.step} has {entry.flops:,} FLOPs, its steps cost {cost:,}")


def _wrong(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: {what}; lines were lost, doubled or changed: restore the file, or train the stage in another run"
    )
