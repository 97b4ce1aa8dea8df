"""Size and SHA-256 of files: what a manifest says of a checkpoint, and data.json of prepared data."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import BaseModel, ConfigDict

Done = Callable[[int], None]
"""Told how many bytes were hashed."""


class FileRecord(BaseModel):
    """One file: bytes, and SHA-256 in hexadecimal."""

    model_config = ConfigDict(frozen=True)

    size: int
    sha256: str


def silent(size: int) -> None:
    """Reports no progress."""


def sha256(path: Path, done: Done = silent) -> str:
    """The hash of a file; `done` is called with the size of every piece."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
            done(size)
    return digest.hexdigest()


def files_below(folder: Path) -> list[str]:
    """The paths of all files below `folder`, from there, in order."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def record(path: Path, done: Done = silent) -> FileRecord:
    """Size and SHA-256 of a file."""
    return FileRecord(size=path.stat().st_size, sha256=sha256(path, done))


def hashes(folder: Path, names: Iterable[str], workers: int = 1, done: Done = silent) -> dict[str, FileRecord]:
    """The records of the files `names` below `folder`; `workers` threads hash."""
    names = list(names)
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(names, pool.map(lambda name: record(folder / name, done), names), strict=True))
