"""Names that come from a file, or from a user, before they become paths below a folder."""

from pathlib import PurePosixPath

LONGEST = 255
"""Bytes of a file's name on the file systems of Linux."""


def is_below(name: str) -> bool:
    """Whether `name`, which may have folders in it, stays below the folder it is joined to, spelled in one way only."""
    parts = name.split("/")
    plain = all(part not in ("", ".", "..") and len(part.encode(errors="replace")) <= LONGEST for part in parts)
    return plain and "\0" not in name and not PurePosixPath(name).is_absolute()


def is_file_name(name: str) -> bool:
    """Whether `name` is that of a file or folder itself, without a path in front."""
    return "/" not in name and is_below(name)
