"""The errors that users see.

Everything that a user can correct (a config, a path, a checkpoint) raises `UserError`; the command line prints its
text in one line and exits with code 2. What nobody did wrong and may go well the next time (a worker that was killed, a
hang) raises `FaultError`, with code 75. Any other exception is a bug of the pipeline and keeps its traceback.
"""

import difflib
import errno
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says where a file does not fit any more."""
LOST = (errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.ENOENT)
"""What it says of content that is not there any more."""
FAILED_WRITE = ("PytorchStreamWriter failed", "unexpected pos")
"""What torch makes of it."""
ELSEWHERE = "make room or choose another place"
AGAIN = "make room and run the command again to resume"
"""The way out where a result cannot be written, and where a run's own files cannot."""
LONGEST_REASON = 160
"""Characters of another library's error that a UserError quotes."""


class UserError(Exception):
    """What is wrong, where, with which values, and the way out: one line, no traceback."""


RESUME = "; run the command again to resume"
"""How most faults end."""


class FaultError(UserError):
    """What went wrong around the command, in one line: started again, it goes on."""

    @property
    def what(self) -> str:
        """Without the way out."""
        return str(self).partition(RESUME)[0]


FAULT = 75
"""The exit code behind a `FaultError`: EX_TEMPFAIL of sysexits.h."""


class Preempted(BaseException):
    """The command was asked to stop, and did so in good order: what it was doing, in words. No mistake of anybody."""


@contextmanager
def placed(place: object) -> Iterator[None]:
    """Put `place`, a key of the config say, in front of what a UserError inside says."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{place}: {error}") from error


def closest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name closest to `name`; nothing where none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """The same, else the list of known names."""
    names = sorted(known)
    return closest(name, names) or f"; known: {', '.join(names) or 'none'}"


def one_line(error: BaseException | str, longest: int = LONGEST_REASON) -> str:
    """The text of another library's error, short enough to be quoted in a UserError."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else text[: longest - 1] + "…"


@contextmanager
def files_explained() -> Iterator[None]:
    """What the system says of a file or folder that it does not let be read or written (no permission, too long a name,
    a folder in the place of a file) raises UserError with that name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        way_out = "make room" if error.errno in FULL else "check the path and its permissions"
        raise UserError(f"{error.filename}: cannot be read or written ({error.strerror}); {way_out}") from error


@contextmanager
def reading_checkpoint(folder: Path) -> Iterator[None]:
    """A file of a checkpoint that the disk does not give back (a bad sector, say), or that is gone, raises UserError:
    it is damaged. Other errors stay what they are: a server that does not answer makes no checkpoint a bad one."""
    try:
        yield
    except OSError as error:
        if error.errno not in LOST:
            raise
        raise UserError(
            f"{error.filename or folder}: cannot be read ({error.strerror or error}); use an older checkpoint"
        ) from error


@contextmanager
def full_disk_explained(place: Path) -> Iterator[None]:
    """A disk that has no room for a file at `place`, or one that the error names, raises UserError; other errors stay
    what they are."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        full = error.errno in FULL if isinstance(error, OSError) else any(text in str(error) for text in FAILED_WRITE)
        if not full:
            raise
        named = getattr(error, "filename", None) or place
        reason = getattr(error, "strerror", None) or one_line(error)
        free = shutil.disk_usage(place).free
        raise UserError(
            f"{named}: cannot be written ({reason}); {free:,} bytes are free on the disk of {place}; {AGAIN}"
        ) from error


@contextmanager
def writing_to(place: Path, way_out: str = ELSEWHERE) -> Iterator[None]:
    """Whatever keeps a file or folder that a user has named from being written (no such folder, a file in its way, no
    permission, a full disk) raises UserError."""
    try:
        yield
    except OSError as error:
        elsewhere = f": {error.filename}" if error.filename and str(error.filename) != str(place) else ""
        raise UserError(f"{place}: cannot be written ({error.strerror}{elsewhere}); {way_out}") from error
