"""Size and digest of files: what a manifest says of a checkpoint, and data.json of prepared data.

Each record names the algorithm of its digest, so that digests of two algorithms are never taken for different contents:
whoever checks a file hashes it by the algorithm of the record.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from blake3 import blake3
from pydantic import BaseModel, ConfigDict, model_serializer, model_validator

from pipeline.errors import UserError

Algorithm = Literal["blake3", "sha256"]
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)
FASTEST: Algorithm = "blake3"
"""By which new checkpoints are sealed, unless another is asked for."""
TITLES = {"blake3": "BLAKE3", "sha256": "SHA-256"}
BUFFER = 1 << 19
"""Bytes that are read and hashed at a time: they stay in a core's own cache."""

Done = Callable[[int], None]
"""Told how many bytes were hashed."""


def require_known(algorithm: str) -> None:
    """Raises UserError for the name of none."""
    if algorithm not in ALGORITHMS:
        raise UserError(f"unknown hash '{algorithm}'; known: {', '.join(ALGORITHMS)}")


class Hasher(Protocol):
    """A digest in the making."""

    def update(self, data: Any, /) -> Any:
        """Goes on with the bytes of a buffer."""
        ...

    def hexdigest(self) -> str:
        """In hexadecimal, of all bytes so far."""
        ...


def hasher(algorithm: Algorithm) -> Hasher:
    return blake3() if algorithm == "blake3" else hashlib.sha256()


class FileRecord(BaseModel):
    """One file: bytes, and its digest in hexadecimal. In JSON the digest stands under its algorithm's name."""

    model_config = ConfigDict(frozen=True)

    size: int
    algorithm: Algorithm
    digest: str

    @model_validator(mode="before")
    @classmethod
    def _from_json(cls, content: Any) -> Any:
        if not isinstance(content, dict) or "algorithm" in content:
            return content
        named = [name for name in ALGORITHMS if name in content]
        if len(named) != 1:
            raise ValueError(f"one digest is expected ({' or '.join(ALGORITHMS)}), and {len(named)} are there")
        return {**content, "algorithm": named[0], "digest": content[named[0]]}

    @model_serializer
    def _as_json(self) -> dict[str, int | str]:
        return {"size": self.size, self.algorithm: self.digest}


def silent(size: int) -> None:
    """Reports no progress."""


def digest(path: Path, algorithm: Algorithm, done: Done = silent) -> str:
    """Of a file, in hexadecimal; `done` is called with the size of every piece."""
    content, buffer = hasher(algorithm), memoryview(bytearray(BUFFER))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            content.update(buffer[:size])
            done(size)
    return content.hexdigest()


def sha256(path: Path) -> str:
    """Of a small file that stands for others: a manifest, a plan."""
    return digest(path, "sha256")


def files_below(folder: Path) -> list[str]:
    """The paths of all files below `folder`, from there, in order."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def record(path: Path, algorithm: Algorithm, done: Done = silent) -> FileRecord:
    """Size and digest of a file."""
    return FileRecord(size=path.stat().st_size, algorithm=algorithm, digest=digest(path, algorithm, done))


def hashes(
    folder: Path, names: Iterable[str], algorithm: Algorithm, workers: int = 1, done: Done = silent
) -> dict[str, FileRecord]:
    """The records of the files `names` below `folder`; `workers` threads hash."""
    return _hashed(folder, dict.fromkeys(names, algorithm), workers, done)


def hashed_again(
    folder: Path, recorded: Mapping[str, FileRecord], workers: int = 1, done: Done = silent
) -> dict[str, FileRecord]:
    """The records of the same files as they are now, each by the algorithm of its earlier record."""
    return _hashed(folder, {name: file.algorithm for name, file in recorded.items()}, workers, done)


def _hashed(folder: Path, by: Mapping[str, Algorithm], workers: int, done: Done) -> dict[str, FileRecord]:
    with ThreadPoolExecutor(workers) as pool:
        records = pool.map(lambda name: record(folder / name, by[name], done), by)
        return dict(zip(by, records, strict=True))
