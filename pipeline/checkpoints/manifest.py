"""What makes a folder a checkpoint: a manifest with the hash of every file, written last.

Everything is staged in a hidden sibling folder, hashed, synced to disk and renamed. A checkpoint exists whole or not
at all; DeepSpeed's own `latest` is never written and never trusted.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from pipeline.errors import UserError
from pipeline.folders import read_json, write_json

NAME = "manifest.json"
FORMAT = 1
STAGING = ".staging-"


def staging(final: Path) -> Path:
    """A fresh hidden folder beside `final`, for writing in; what an interrupted writer left is removed."""
    folder = final.with_name(STAGING + final.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(folder: Path) -> list[str]:
    """The files below `folder`, but for the manifest."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != NAME)


def hashes(folder: Path, names: list[str]) -> dict[str, dict]:
    """Size and SHA-256 of the files `names` below `folder`."""
    return {name: {"size": (folder / name).stat().st_size, "sha256": sha256(folder / name)} for name in names}


def publish(folder: Path, final: Path, facts: dict, files: dict[str, dict] | None = None) -> None:
    """Turn the staged `folder` into the checkpoint `final`. `files`: hashes, when they are known already."""
    content = {"format": FORMAT, **facts, "files": dict(sorted((files or hashes(folder, listing(folder))).items()))}
    for name in content["files"]:
        _sync(folder / name)
    write_json(folder / NAME, {**content, "sha256": _digest(content)})
    _sync(folder)
    if final.exists():
        shutil.rmtree(final)
    os.replace(folder, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(folder: Path) -> dict:
    """The manifest of a checkpoint, checked against itself and against the sizes of its files. Raises UserError."""
    content = read_json(folder / NAME)
    if content.pop("sha256", None) != _digest(content):
        raise UserError(f"{folder / NAME}: the manifest does not match its own hash; the checkpoint is damaged, use an older one")
    for name, wanted in content["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != wanted["size"]:
            held = "missing" if size is None else f"{size} bytes"
            raise UserError(f"{path}: {held}, the manifest says {wanted['size']} bytes; use an older checkpoint")
    return content


def verify(folder: Path) -> dict:
    """Like `read`, and every byte hashed. Raises UserError naming the first file that differs."""
    content = read(folder)
    for name, wanted in content["files"].items():
        if sha256(folder / name) != wanted["sha256"]:
            raise UserError(f"{folder / name}: its SHA-256 is not the manifest's; the file is damaged, use an older checkpoint")
    return content


def complete(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first: those whose manifest was written."""
    return sorted(path.parent for path in folder.glob(f"[!.]*/{NAME}"))


def newest(folder: Path) -> Path | None:
    found = complete(folder)
    return found[-1] if found else None


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints and whatever an interrupted writer left."""
    for old in complete(folder)[:-keep]:
        (old / NAME).unlink()  # from here on it is no checkpoint, whatever happens
        shutil.rmtree(old)
    for left in [*folder.glob(STAGING + "*"), *(p for p in folder.glob("step-*") if not (p / NAME).exists())]:
        shutil.rmtree(left)
