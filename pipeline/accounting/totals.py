"""What was spent: FLOPs, samples and tokens by stage and kind, as exact integers."""

from collections.abc import Iterable

from pipeline.accounting.recorded_runs import Content, RecordedStage
from pipeline.records.stage_records import LOST, TRAINING, LedgerEntry

KINDS = (*TRAINING, LOST, "evaluate", "evaluate-make", "verify", "grow")
"""The order in which kinds of cost are listed; any other follows."""


class Amounts(Content):
    """What was spent, as exact integers."""

    flops: int = 0
    samples: int = 0
    tokens: int = 0

    @classmethod
    def of(cls, entries: Iterable[LedgerEntry]) -> "Amounts":
        """The sum of ledger entries."""
        listed = list(entries)
        return cls(**{unit: sum(getattr(entry, unit) for entry in listed) for unit in Amounts.model_fields})


class TotalsRow(Amounts):
    stage: str
    kind: str
    share_percent: float


class Totals(Content):
    """What was spent by stage and kind, with sums. training: what published savings count."""

    rows: list[TotalsRow]
    by_kind: dict[str, Amounts]
    training: Amounts
    everything: Amounts


def training_flops(ledger: list[LedgerEntry], until: int) -> int:
    """Training FLOPs (forward, backward, recomputation, making of weights) of the first `until` steps."""
    return sum(entry.flops for entry in ledger if entry.kind in TRAINING and entry.step <= until)


def by_kind(entries: list[LedgerEntry]) -> dict[str, Amounts]:
    """The sums of ledger entries of each kind."""
    kinds = sorted({entry.kind for entry in entries}, key=_order)
    return {kind: Amounts.of(entry for entry in entries if entry.kind == kind) for kind in kinds}


def _order(kind: str) -> tuple[int, str]:
    return (KINDS.index(kind) if kind in KINDS else len(KINDS), kind)


def add_up(stages: Iterable[RecordedStage]) -> Totals:
    """Everything that `stages` spent."""
    stages = list(stages)
    entries = [entry for stage in stages for entry in stage.ledger]
    total = Amounts.of(entries)
    rows = [
        TotalsRow(
            stage=stage.name,
            kind=kind,
            **dict(spent),
            share_percent=100 * spent.flops / total.flops if total.flops else 0.0,
        )
        for stage in stages
        for kind, spent in by_kind(stage.ledger).items()
    ]
    training = Amounts.of(entry for entry in entries if entry.kind in TRAINING)
    return Totals(rows=rows, by_kind=by_kind(entries), training=training, everything=total)
