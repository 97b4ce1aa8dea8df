"""How far a long text is read: a line in the log every half minute."""

import logging
import time

logger = logging.getLogger(__name__)

EVERY = 30.0
"""Seconds between two lines."""


class ReadingProgress:
    """Characters done, of how many where that is known, and how long the rest will take."""

    def __init__(self, what: str, total: int | None = None, done: int = 0):
        """done: those that were done before, in no time."""
        self.what, self.total, self.before = what, total, done
        self.begun = self.said = time.monotonic()

    def show(self, done: int) -> None:
        """`done` characters are done in all."""
        now = time.monotonic()
        if now - self.said < EVERY:
            return
        self.said = now
        speed = max(1, done - self.before) / (now - self.begun)
        of = f" of {self.total:,}, {done / self.total:.0%}" if self.total else ""
        left = f", {(self.total - done) / speed / 60:,.0f} minutes left" if self.total else ""
        logger.info(f"{self.what}: {done:,}{of} characters, {speed / 1e6:.2f} million a second{left}")
