"""The last step that a stage has finished, so that a kill between two lines of its ledger loses no count."""

import os
from pathlib import Path

WIDTH = 20
"""Digits, so that a later number covers an earlier one."""


class StepCounter:
    """A file with one number, which stays open from the first `write` to `remove`. A process that is killed leaves the
    last number that it wrote."""

    def __init__(self, path: Path):
        self.path = path
        self._file: int | None = None

    def read(self) -> int:
        """0 where there is none."""
        try:
            return int(self.path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            return 0

    def write(self, step: int) -> None:
        if self._file is None:
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(self._file, f"{step:0{WIDTH}d}".encode(), 0)

    def remove(self) -> None:
        """To be called when the stage has ended."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
        self.path.unlink(missing_ok=True)
