"""Bytes done so far, as a bar on a terminal."""

import logging
import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn


class ByteProgress:
    """A bar of `total` bytes on stderr, where that is a terminal and the logger `pipeline` shows INFO: a library that
    uses the package and `lemon -q` see nothing."""

    def __init__(self, label: str, total: int):
        shown = logging.getLogger(__name__).isEnabledFor(logging.INFO) and sys.stderr.isatty()
        self._progress = Progress(
            TextColumn(label),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not shown,
        )
        self._task = self._progress.add_task("", total=total)

    def advance(self, size: int) -> None:
        """`size` more bytes are done; any thread may tell."""
        self._progress.update(self._task, advance=size)

    def show(self, done: int) -> None:
        """`done` bytes are done in all."""
        self._progress.update(self._task, completed=done)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
