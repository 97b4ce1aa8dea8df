"""Publishing a checkpoint: staged in a hidden sibling folder, hashed, synced to disk, and renamed; the manifest comes
last.

A checkpoint exists whole or not at all; DeepSpeed's own `latest` is never written and never trusted.
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.checkpoints.manifest import NAME, UNKNOWN_ORIGIN, Manifest, listing, read
from pipeline.errors import UserError, writing_to
from pipeline.records.file_hashes import FASTEST, Algorithm, FileRecord, hashes
from pipeline.records.run_folder import step_of, write_text

logger = logging.getLogger(__name__)

STAGING, DAMAGED = ".staging-", ".damaged-"


@dataclass(frozen=True)
class Completed:
    """What makes written files a checkpoint. beside: the records of what lies beside the weights; facts: what the
    manifest says."""

    beside: dict[str, FileRecord]
    facts: dict[str, Any]


def staging(final: Path) -> Path:
    """A fresh hidden folder beside `final`, for writing in; what an interrupted writer left is removed."""
    folder = final.with_name(STAGING + final.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def require_free(final: Path) -> None:
    """Raises UserError where something is in the place of a result."""
    if os.path.lexists(final):
        raise UserError(f"{final}: exists already; choose another --out or remove it")


@contextmanager
def writing(final: Path) -> Iterator[Path]:
    """A staged folder for `final`, locked by this process: a second writer is refused, what a dead one left is removed,
    and what is not published by the end is removed as well. Raises UserError, also where something is there already or
    nothing can be made."""
    with writing_to(final, "choose another --out"):
        require_free(final)
        staged = final.with_name(STAGING + final.name)
        staged.mkdir(parents=True, exist_ok=True)
        handle = os.open(staged, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{final}: another process is writing it; wait for it or choose another --out") from error
        _clear(staged)
        try:
            with writing_to(final):
                yield staged
        finally:  # not published, and nobody else's
            if staged.exists() and os.path.samestat(os.fstat(handle), staged.stat()):
                shutil.rmtree(staged, ignore_errors=True)
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def publish(
    folder: Path,
    final: Path,
    facts: Mapping[str, Any],
    files: dict[str, FileRecord] | None = None,
    algorithm: Algorithm = FASTEST,
) -> None:
    """Turn the staged `folder` into the checkpoint `final`. facts: what the manifest says besides the files. files:
    their records, where they are known already; else they are hashed by `algorithm`."""
    files = files or hashes(folder, listing(folder), algorithm)
    seal(folder, facts, files)
    if final.exists():
        shutil.rmtree(final)
    os.replace(folder, final)
    sync(final.parent)
    logger.debug(f"{final}: published, {len(files)} files")


def seal(folder: Path, facts: Mapping[str, Any], files: dict[str, FileRecord]) -> None:
    """Write the manifest of a staged folder, when all its files have reached the disk."""
    content = Manifest.model_validate({"provenance": UNKNOWN_ORIGIN, **facts, "files": files})
    for name in sorted(content.files):
        sync(folder / name)
    write_text(folder / NAME, content.text())
    sync(folder)


def sync(path: Path) -> None:
    """Have what was written to a file or folder reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def complete(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, those whose manifest was written: by name, then those of a step by its number, the
    newest last."""
    found = sorted(path.parent for path in folder.glob(f"[!.]*/{NAME}"))
    return sorted(found, key=lambda checkpoint: -1 if (step := step_of(checkpoint)) is None else step)


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in `folder`."""
    checkpoints = complete(folder)
    return checkpoints[-1] if checkpoints else None


def newest_complete(folder: Path, verify: Callable[[Path], object] = read) -> Path | None:
    """The newest checkpoint in `folder` of which all files are there in their sizes; those that are newer and damaged
    are set aside. verify: what raises UserError for a damaged one. Raises UserError when all are damaged."""
    while checkpoint := newest(folder):
        try:
            verify(checkpoint)
            return checkpoint
        except UserError as error:
            set_aside(checkpoint, str(error))
    return None


def set_aside(checkpoint: Path, damage: str) -> None:
    """Take a damaged checkpoint out of every reader's sight, under a hidden name beside it, and say so. Raises
    UserError where there is no other."""
    if complete(checkpoint.parent) == [checkpoint]:
        raise UserError(
            f"{damage}; the stage has no other: bring one back, or remove {checkpoint.parent} to train it anew"
        )
    hidden = checkpoint.with_name(DAMAGED + checkpoint.name)
    shutil.rmtree(hidden, ignore_errors=True)
    os.replace(checkpoint, hidden)
    logger.warning(f"{damage} (kept as {hidden})")
