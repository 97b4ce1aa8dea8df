"""Where the wall clock of a training stage went, from its first start to its end, and how much of it was of use."""

from collections.abc import Iterable

from pipeline.accounting.recorded_runs import Content
from pipeline.records.time_records import KINDS, STEPPING, SpentRecord, StartRecord

ROWS = (*KINDS, "lost", "waiting")
"""lost: steps that were done again, with all that was done behind them; waiting: between two starts."""


class WallTime(Content):
    """rows: seconds by kind; step: the mean of one step, by what it is made of. seconds: the sum of the rows, the wall
    clock from the first start to the last line where the starts' clocks agree. goodput: the share of steps that count
    (the effective training-time ratio)."""

    stage: str
    starts: int
    seconds: float
    rows: dict[str, float]
    goodput: float
    step: dict[str, float]


class _Spent:
    """Seconds by step and kind, while the lines of times.jsonl are read."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str, float]] = []
        self.until: float | None = None
        self.step = 0

    def restart(self, record: StartRecord) -> None:
        """What stands behind the step is lost, but for the starts themselves."""
        self.lines = [(step, _after(record, step, kind), seconds) for step, kind, seconds in self.lines]
        if self.until is not None:
            self.lines += [(record.step, "lost", record.unrecorded)]
            self.lines += [(record.step, "waiting", max(0.0, record.began - self.until - record.unrecorded))]
        self.until = record.began

    def add(self, record: SpentRecord) -> None:
        self.lines += [(record.step, kind, seconds) for kind, seconds in record.seconds.items()]
        self.until, self.step = record.until, record.step


def _after(restart: StartRecord, step: int, kind: str) -> str:
    return "lost" if step > restart.step and kind not in ("start", "waiting") else kind


def wall_time(stage: str, records: Iterable[StartRecord | SpentRecord]) -> WallTime | None:
    """None for a stage of which no time was recorded."""
    spent, starts = _Spent(), []
    for record in records:
        if isinstance(record, StartRecord):
            starts.append(record)
            spent.restart(record)
        else:
            spent.add(record)
    if not starts or spent.until is None:
        return None
    rows = dict.fromkeys(ROWS, 0.0)
    for _, kind, seconds in spent.lines:
        rows[kind] += seconds
    total = sum(rows.values())
    useful = sum(rows[kind] for kind in STEPPING)
    return WallTime(
        stage=stage,
        starts=len(starts),
        seconds=total,
        rows=dict(rows),
        goodput=useful / total if total > 0 else 0.0,
        step={kind: rows[kind] / max(1, spent.step) for kind in (*STEPPING, "other")},
    )
