"""The run that is disturbed: small stage, (reshard,) expansion, large stage; and how far it has come."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoints import manifest
from tests.helpers.runs import BATCH, tiny_run
from tests.helpers.waiting import patience

STEPS, SAVE_EVERY = 48, 4
"""Of both training stages."""
PAUSE, FIRST = 15, 30
"""Seconds that a save or an evaluation, the start, and each first phase may stand still where nothing else computes:
less than by default, so that no fault takes minutes."""
TRAINED, PARTS = ("small", "large"), ("small", "reshard", "grown", "large")


@dataclass(frozen=True)
class Variant:
    """zero: ZeRO stages of the small and of the large stage. resharded: ZeRO stage and ranks of what the expansion
    reads, where not the small stage's own shards."""

    zero: tuple[int, int]
    moments: str
    log_every: int
    resharded: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        between = "-{}x{}".format(*self.resharded) if self.resharded else ""
        return f"zero{self.zero[0]}{between}-zero{self.zero[1]}-{self.moments}"

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(part for part in PARTS if part != "reshard" or self.resharded)


VARIANTS = (
    Variant((1, 3), "grow", 1, (2, 3)),
    Variant((2, 1), "reset", 3),
    Variant((3, 2), "grow", 1, (1, 1)),
    Variant((2, 3), "grow", 4),
    Variant((3, 1), "reset", 1, (3, 4)),
    Variant((1, 2), "grow", 5),
)


class Chain:
    """A variant's run, its config and what is resharded, in one folder."""

    def __init__(self, variant: Variant, folder: Path):
        self.variant, self.folder = variant, folder
        self.run, self.resharded = folder / "run", folder / "resharded"
        self.damaged: set[int] = set()
        """Inodes of checkpoints' folders."""

    def begin(self) -> None:
        """Make the folder anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        rate = {"peak": 1e-3, "minimum": 1e-4, "warmup": "4 steps", "horizon": f"{STEPS} steps"}
        train = {"kind": "train", "batch": BATCH, "evaluate_every": "10 steps", "save_every": f"{SAVE_EVERY} steps"}
        train |= {"schedule": rate, "log_every": self.variant.log_every, "attention": "sdpa"}
        first, second = self.variant.zero
        method = {"method": {"name": "lemon", "depth": "cancel"}, "optimizer_state": self.variant.moments}
        stages = [
            {**train, "name": "small", "model": "small", "zero_stage": first},
            {"kind": "expand", "name": "grown", "source": "small", "model": "large", **method},
            {**train, "name": "large", "model": "large", "start": "grown", "zero_stage": second},
        ]
        hang = {"pause": f"{patience(PAUSE):.0f} seconds", "first": f"{patience(FIRST):.0f} seconds"}
        tiny_run(self.folder, stages=stages, hang=hang)

    def command(self) -> list[str]:
        """What is to be started now; when `run` has ended well, all has."""
        config = str(self.folder / "tiny.yaml")
        if self.variant.resharded is None:
            return ["run", config]
        if not self.finished("small"):
            return ["train", config, "--stage", "small"]
        if not self.finished("reshard"):
            stage, ranks = map(str, self.variant.resharded)
            place = ["reshard", str(self.run / "small"), "--out", str(self.resharded)]
            return [*place, "--zero-stage", stage, "--world-size", ranks]
        return ["run", config, f"stages.grown.source={self.resharded}"]

    def finished(self, part: str) -> bool:
        """Whether a part of the run has been done."""
        if part == "reshard":
            return (self.resharded / manifest.NAME).exists()
        with suppress(OSError, ValueError):
            return json.loads((self.run / part / "stage.json").read_text())["status"] == "finished"
        return False

    @property
    def part(self) -> str | None:
        """The one that is at work, or the next; None: all are done."""
        return next((part for part in self.variant.parts if not self.finished(part)), None)

    def checkpoints(self, stage: str) -> list[Path]:
        """Those that are whole, the newest last."""
        found = sorted(path.parent for path in (self.run / stage / "checkpoints").glob(f"step-*/{manifest.NAME}"))
        return [path for path in found if path.stat().st_ino not in self.damaged]

    def saved(self, stage: str) -> int:
        """The step of the newest."""
        return max((_step(path) for path in self.checkpoints(stage)), default=0)

    def saving(self, stage: str) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.run / stage / "checkpoints").glob(".staging-*"))

    def trained(self, stage: str, since: float = 0.0) -> int:
        """The last step that a start after `since` (seconds since the epoch) has finished; 0: none."""
        counter = self.run / stage / "last-step"
        with suppress(OSError, ValueError):
            if counter.stat().st_mtime >= since:
                return int(counter.read_text())
        return 0

    def to_redo(self, stage: str) -> tuple[int, int]:
        """Steps finished behind the newest checkpoint, and when the last was (ns), which tells whether a start that was
        killed has come to the stage."""
        counter = self.run / stage / "last-step"
        if not counter.exists():
            return 0, 0
        return max(0, self.trained(stage) - self.saved(stage)), counter.stat().st_mtime_ns


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
