"""What the command line prints: the library's log as plain lines, errors as one, tables by rich."""

import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console

from pipeline.errors import FAULT, FaultError, Preempted, UserError, files_explained
from pipeline.training.preemption import REQUEUE

LOGGER = "pipeline"


class PrintingHandler(logging.StreamHandler[TextIO]):
    """Writes messages to whatever `sys.stdout` or `sys.stderr` is at that moment. name: which of them."""

    def __init__(self, name: str) -> None:
        logging.Handler.__init__(self)
        self._name_of_stream = name

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # read-only: never another
        stream: TextIO = getattr(sys, self._name_of_stream)
        return stream


@contextmanager
def messages_printed(*, quiet: bool, verbose: bool, stream: str = "stdout") -> Iterator[None]:
    """Print the library's messages meanwhile: warnings only when `quiet`, details too when `verbose`. stream: stderr
    where standard output is for a program that reads it."""
    logger = logging.getLogger(LOGGER)
    before = logger.handlers, logger.level, logger.propagate
    logger.handlers, logger.propagate = [PrintingHandler(stream)], False
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


def print_whatever_comes() -> None:
    """Let standard output and error escape what their encoding lacks: a name of a file, or our own '…'."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_code(work: Callable[[], int | None]) -> int:
    """What `work` returns, or 0. Bad input is 2, a fault of something else 75, a request to stop 85, Ctrl-C 130, and a
    line on standard error tells it."""
    try:
        with files_explained():
            return work() or 0
    except UserError as error:
        print(f"lemon: {printable(str(error))}", file=sys.stderr)
        return FAULT if isinstance(error, FaultError) else 2
    except Preempted as stop:
        print(f"lemon: {printable(str(stop))}; run the command again to go on", file=sys.stderr)
        return REQUEUE
    except KeyboardInterrupt:
        print("lemon: stopped; run the command again to resume", file=sys.stderr)
        return 130


def printable(text: str) -> str:
    """The text with what a name may hold and a terminal obeys (line breaks, escape sequences) written out. The lines
    of an enumeration, which are indented, stay lines."""
    lines = re.split(r"\n(?=  )", text)
    return "\n".join("".join(c if c.isprintable() else repr(c)[1:-1] for c in line) for line in lines)


def console() -> Console:
    """Standard output for tables: as wide as the terminal, and wide enough for one line a row elsewhere."""
    return Console(width=None if sys.stdout.isatty() else 200)
