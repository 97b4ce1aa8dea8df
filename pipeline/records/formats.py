"""The format of what is recorded: each object names its own, an older one is upgraded while it is read, a newer one
refused."""

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import UserError

FORMAT: Final = 2
"""What this version writes. Format 1 had no such number."""


class Recorded(BaseModel):
    """What a stage records, as a JSON object. It never changes once it was made.

    Keys that the format does not name are kept: a key that leaves the meaning of all others alone needs no new format,
    and a version that does not know it must not lose it when it writes the object again.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    format: Literal[2] = FORMAT


def require_readable(place: str | Path, written: object, newest: int = FORMAT) -> None:
    """Raises UserError when `written`, the format that is named at `place`, is not one that this version can read.
    newest: the latest that it can."""
    if not isinstance(written, int) or isinstance(written, bool) or written < 1:
        raise UserError(f"{place}: {written!r} is not the number of a format; the file is damaged, restore it")
    if written > newest:
        raise UserError(
            f"{place}: has format {written}, and this version of lemon reads formats up to {newest}; "
            "use the version that wrote it, or a newer one"
        )


def explained(error: ValidationError) -> str:
    """What does not fit a recorded object, in one line."""
    return "; ".join(f"{'.'.join(map(str, one['loc'])) or 'all'}: {one['msg']}" for one in error.errors())
