"""What a person sees while a stage trains: a bar on a terminal, plain lines elsewhere, the same lines in log.txt.

It is shown where the logger `pipeline` would show INFO, so a library that uses the package and `lemon -q` see nothing.
"""

import logging
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipeline.records.stage_records import TrainingRecord

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30
"""Without a terminal, one line in this many seconds and one at every evaluation."""


class Progress:
    """Of a stage of `total` steps on `kind` (text or images). first: rank 0 shows and writes, the others do nothing."""

    def __init__(self, stage: str, total: int, folder: Path, kind: str, first: bool):
        self.stage, self.total, self.folder, self.first = stage, total, folder, first
        self.shown = first and logger.isEnabledFor(logging.INFO)
        self.rate_key, self.unit = (
            ("tokens_per_second", "tokens/s") if kind == "text" else ("samples_per_second", "images/s")
        )
        self.console = Console(highlight=False)
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bar = Bar(*columns, console=self.console, disable=not (self.shown and sys.stdout.isatty()))
        self.task = self.bar.add_task(stage, total=total, status="")
        self.last_line = time.monotonic()

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def begin(self, step: int, peak: float | None, ranks: int, device: str) -> None:
        """Say where the stage begins, and what its MFU is measured against: `peak` FLOP/s of all `ranks` together."""
        self.bar.update(self.task, completed=step)
        if not self.first:
            return
        if step:
            self._write(f"{self.stage}: resumed at step {step} of {self.total}")
        if peak is None:
            line = f"{self.stage}: the peak of this device ({device}) is not known; no MFU is reported"
            self.warn(line)
        else:
            self._write(f"{self.stage}: MFU counts from a peak of {peak:.3g} FLOP/s ({device}, {ranks} ranks together)")

    def step(self, record: TrainingRecord) -> None:
        mfu = "" if record.mfu is None else f"  MFU {100 * record.mfu:.0f} %"
        speed = f"{getattr(record, self.rate_key):,.0f} {self.unit}"
        status = f"loss {record.loss:.3f}  lr {record.lr:.1e}  {speed}{mfu}"
        self.bar.update(self.task, completed=record.step, status=status)
        if self.bar.disable and time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self._write(f"{self.stage}: step {record.step} of {self.total}  {status}")

    def evaluation(self, step: int, result: dict[str, float]) -> None:
        values = "  ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in result.items())
        self._write(f"{self.stage}: step {step} of {self.total}  evaluation {values}")

    def ended(self, step: int, why: str) -> None:
        """Say why the stage ends behind `step`."""
        self._write(f"{self.stage}: ended at step {step} of {self.total}: {why}")

    def say(self, line: str) -> None:
        """A line for who looks on, in the log too."""
        if self.first:
            self._write(line)

    def warn(self, line: str) -> None:
        """What a person must know, in the log too."""
        logger.warning(line)
        self._log(line)

    def _write(self, line: str) -> None:
        self.last_line = time.monotonic()
        if self.shown:
            self.bar.console.print(line)
        self._log(line)

    def _log(self, line: str) -> None:
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
