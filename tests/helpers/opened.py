"""Which files were opened, by whatever means: Python's own audit of every `open`."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_counts: Counter | None = None


def _audit(event: str, arguments: tuple) -> None:
    if event == "open" and _counts is not None and isinstance(arguments[0], str):
        _counts[Path(arguments[0]).resolve()] += 1


@contextmanager
def opened() -> Iterator[Counter]:
    """How often each path is opened inside the block."""
    global _counts
    if not hasattr(sys, "_opened_is_audited"):
        sys.addaudithook(_audit)
        sys._opened_is_audited = True
    _counts = Counter()
    try:
        yield _counts
    finally:
        _counts = None
