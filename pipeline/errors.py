"""The one error that users see.

Everything that a user can correct (a config, a path, a checkpoint) raises `UserError`; the command line prints its
text in one line and exits with code 2. Any other exception is a bug of the pipeline and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """What is wrong, where, with which values, and the way out: one line, no traceback."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(names)}"


@contextmanager
def at(place: str) -> Iterator[None]:
    """A UserError that is raised here names its place first."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


@contextmanager
def writing_to(place: Path, way_out: str = "make room or choose another place") -> Iterator[None]:
    """Whatever keeps a file or folder that a user has named from being written (no such folder, a file in its way, no
    permission, a full disk) raises UserError."""
    try:
        yield
    except OSError as error:
        elsewhere = f": {error.filename}" if error.filename and str(error.filename) != str(place) else ""
        raise UserError(f"{place}: cannot be written ({error.strerror}{elsewhere}); {way_out}") from error
