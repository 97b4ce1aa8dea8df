"""The one error that users see.

Everything a user can put right (a config, a path, a checkpoint) raises `UserError`; the command line
prints its text in one line and exits with code 2. Anything else is a fault of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """What is wrong, where, with which values, and the way out: one line, no traceback."""


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`, or the list of what is known."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}"
