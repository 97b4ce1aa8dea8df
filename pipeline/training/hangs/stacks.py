"""What each rank that still answers was doing when training hung."""

import faulthandler
import os
import threading
from collections.abc import Callable
from pathlib import Path

LONGEST = 2.0
"""Seconds that a disk has; it may be what hangs."""


def write(folder: Path, rank: int, heading: str) -> None:
    """The Python stacks of all threads of this process, into `folder`/rank-N.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{rank}.txt").open("w", encoding="utf-8") as file:
        file.write(f"{heading}, process {os.getpid()}\n\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)


def within(seconds: float, work: Callable[[], object]) -> None:
    """Do something that may never end, and go on after so long."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
