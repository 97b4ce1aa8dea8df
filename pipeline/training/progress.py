"""What a person sees while a stage trains: a bar on a terminal, plain lines elsewhere, the same lines in log.txt."""

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pipeline.errors import UserError

QUIET_SECONDS = 30
"""Without a terminal, one line in this many seconds and one at every evaluation."""


class Progress:
    """Rank 0 speaks, the others are silent. `unit` is what a sample is made of: tokens or images."""

    def __init__(self, stage: str, total: int, folder: Path, kind: str, speaks: bool, tensorboard: bool):
        self.stage, self.total, self.folder, self.speaks, self.tensorboard = stage, total, folder, speaks, tensorboard
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
        self.bar = Bar(*columns, console=self.console, disable=not (speaks and sys.stdout.isatty()))
        self.task = self.bar.add_task(stage, total=total, status="")
        self.spoken = time.monotonic()
        self.writer = None

    def __enter__(self) -> "Progress":
        self.bar.start()
        if self.speaks and self.tensorboard:
            self.writer = _tensorboard(self.folder / "tensorboard")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
        if self.writer:
            self.writer.close()

    def begin(self, step: int, peak: float | None, ranks: int, device: str) -> None:
        """Say where the stage begins, and what its MFU is measured against: `peak` FLOP/s of all `ranks` together."""
        self.bar.update(self.task, completed=step)
        if not self.speaks:
            return
        if step:
            self._say(f"{self.stage}: resumed at step {step} of {self.total}")
        if peak is None:
            self._say(f"{self.stage}: the peak of this device ({device}) is not known; no MFU is reported")
        else:
            self._say(f"{self.stage}: MFU counts from a peak of {peak:.3g} FLOP/s ({device}, {ranks} ranks together)")

    def step(self, record: dict) -> None:
        """A training record, see ledger.py."""
        mfu = "" if record["mfu"] is None else f"  MFU {100 * record['mfu']:.0f} %"
        status = f"loss {record['loss']:.3f}  lr {record['lr']:.1e}  {record[self.rate_key]:,.0f} {self.unit}{mfu}"
        self.bar.update(self.task, completed=record["step"], status=status)
        self._log_scalars(record, "train")
        if self.bar.disable and time.monotonic() - self.spoken > QUIET_SECONDS:
            self._say(f"{self.stage}: step {record['step']} of {self.total}  {status}")

    def evaluation(self, step: int, result: dict[str, float]) -> None:
        shown = "  ".join(f"{name.removeprefix('eval_')} {value:.4f}" for name, value in result.items())
        self._log_scalars({"step": step, **result}, "evaluation")
        self._say(f"{self.stage}: step {step} of {self.total}  evaluation {shown}")

    def _say(self, line: str) -> None:
        self.spoken = time.monotonic()
        self.bar.console.print(line)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")

    def _log_scalars(self, record: dict, group: str) -> None:
        if self.writer:
            for name, value in record.items():
                if isinstance(value, float):
                    self.writer.add_scalar(f"{group}/{name}", value, record["step"])


def _tensorboard(folder: Path):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("tensorboard: true needs the package; pip install -e '.[tracking]'") from error
    return SummaryWriter(str(folder))
