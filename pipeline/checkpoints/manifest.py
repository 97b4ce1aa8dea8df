"""What makes a folder a checkpoint: a manifest with the hash of every file, written last.

Everything is staged in a hidden sibling folder, hashed, synced to disk and renamed. A checkpoint exists whole or not
at all; DeepSpeed's own `latest` is never written and never trusted.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.records.run_folder import read_json, write_json

NAME = "manifest.json"
FORMAT = 1
STAGING = ".staging-"


def staging(final: Path) -> Path:
    """A fresh hidden folder beside `final`, for writing in; what an interrupted writer left is removed."""
    folder = final.with_name(STAGING + final.name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@contextmanager
def writing(final: Path) -> Iterator[Path]:
    """A staged folder for `final`, held by this process: a second writer is refused, what a dead one left is removed, and
    what is not published by the end is removed as well. Raises UserError."""
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
            yield staged
        finally:
            if staged.exists() and os.path.samestat(
                os.fstat(handle), staged.stat()
            ):  # not published, and nobody else's
                shutil.rmtree(staged, ignore_errors=True)
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _silent(size: int) -> None:
    """Nobody is told how many bytes were hashed."""


def sha256(path: Path, done: Callable[[int], None] = _silent) -> str:
    """`done` is told the size of every piece that was hashed."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(buffer[:size])
            done(size)
    return digest.hexdigest()


def listing(folder: Path) -> list[str]:
    """The files below `folder`, but for the manifest."""
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path != folder / NAME
    )


def hashed(path: Path, done: Callable[[int], None] = _silent) -> dict:
    """Size and SHA-256 of a file, as a manifest has them."""
    return {"size": path.stat().st_size, "sha256": sha256(path, done)}


def hashes(folder: Path, names: list[str], workers: int = 1, done: Callable[[int], None] = _silent) -> dict[str, dict]:
    """Size and SHA-256 of the files `names` below `folder`; hashing runs beside other threads."""
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(names, pool.map(lambda name: hashed(folder / name, done), names), strict=True))


@dataclass(frozen=True)
class Origin:
    """The checkpoint that another one is made from: its files are hashed while that is written. wanted: what its manifest says."""

    folder: Path
    wanted: dict[str, dict] | None

    @classmethod
    def of(cls, folder: Path) -> "Origin":
        """Raises UserError for a manifest that contradicts itself or the sizes of its files."""
        return cls(folder, read(folder)["files"] if (folder / NAME).exists() else None)

    @property
    def paths(self) -> list[Path]:
        return [self.folder / name for name in (listing(self.folder) if self.wanted is None else self.wanted)]

    def facts(self, found: dict[Path, dict]) -> dict:
        """What the new manifest says of it: hashes checked where it has a manifest, else taken. Raises UserError for damage."""
        files = {str(path.relative_to(self.folder)): held for path, held in found.items()}
        if self.wanted is None:
            return {"path": str(self.folder), "files": files}
        _require_same(self.folder, self.wanted, files)
        return {"path": str(self.folder), "manifest_sha256": sha256(self.folder / NAME)}


def publish(folder: Path, final: Path, facts: dict, files: dict[str, dict] | None = None) -> None:
    """Turn the staged `folder` into the checkpoint `final`. `files`: hashes, when they are known already."""
    content = {"format": FORMAT, **facts, "files": dict(sorted((files or hashes(folder, listing(folder))).items()))}
    for name in content["files"]:
        sync(folder / name)
    write_json(folder / NAME, {**content, "sha256": _digest(content)})
    sync(folder)
    if final.exists():
        shutil.rmtree(final)
    os.replace(folder, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Have what was written to a file or folder reach the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(folder: Path) -> dict:
    """The manifest of a checkpoint, checked against itself and against the sizes of its files. Raises UserError."""
    content = _own(folder / NAME)
    for name, wanted in content["files"].items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size != wanted["size"]:
            held = "missing" if size is None else f"{size} bytes"
            raise UserError(f"{path}: {held}, the manifest says {wanted['size']} bytes; use an older checkpoint")
    return content


def _own(path: Path) -> dict:
    """The content of a manifest that is to the byte what `publish` wrote: another spelling of the same numbers is damage too."""
    content = read_json(path)
    whole = isinstance(content, dict) and path.read_bytes() == (json.dumps(content, indent=2) + "\n").encode()
    if not whole or content.pop("sha256", None) != _digest(content):
        raise UserError(
            f"{path}: the manifest does not match its own hash; the checkpoint is damaged, use an older one"
        )
    return content


def verify(folder: Path, workers: int = 1, done: Callable[[int], None] = _silent) -> dict:
    """Like `read`, and every byte hashed, in `workers` threads. Raises UserError naming the first file that differs."""
    content = read(folder)
    _require_same(folder, content["files"], hashes(folder, list(content["files"]), workers, done))
    return content


def _require_same(folder: Path, wanted: dict[str, dict], found: dict[str, dict]) -> None:
    for name, facts in wanted.items():
        if found[name]["sha256"] != facts["sha256"]:
            raise UserError(
                f"{folder / name}: its SHA-256 is not the manifest's; the file is damaged, use an older checkpoint"
            )


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
