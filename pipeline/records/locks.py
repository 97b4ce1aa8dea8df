"""Locks of files, which the kernel gives back when their process has ended, however that ends. Between nodes they hold
where the file system carries them there (docs/many-nodes.md)."""

import fcntl
import time
from typing import TextIO

RELEASE = 3.0
"""Seconds for which a lock is waited for: a process that was killed gives it back with its last thread and its memory,
a moment after it looks ended."""


def lock(file: TextIO, wait: float | None = None) -> bool:
    """Lock an open file until it is closed; False where another process has held it for longer than `wait` seconds,
    None: `RELEASE`."""
    latest = time.monotonic() + (RELEASE if wait is None else wait)
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > latest:
                return False
        time.sleep(0.05)
