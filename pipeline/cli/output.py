"""What the command line prints: the library's log as plain lines, tables by rich."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console

LOGGER = "pipeline"


class StandardOutputHandler(logging.StreamHandler[TextIO]):
    """Writes messages to whatever standard output is at that moment."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # read-only: never another
        return sys.stdout


@contextmanager
def messages_printed(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Print the library's messages meanwhile: warnings only when `quiet`, details too when `verbose`."""
    logger = logging.getLogger(LOGGER)
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [StandardOutputHandler()], False
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


def console() -> Console:
    """Standard output for tables: as wide as the terminal, and wide enough for one line a row elsewhere."""
    return Console(width=None if sys.stdout.isatty() else 200)
