"""What a checkpoint holds, by its manifest: size and digest of every file, each under its algorithm's name, how it was
made, and the manifest's own SHA-256.

A folder without a manifest is a foreign checkpoint. Which checkpoint is written when: `publish.py`.
"""

import hashlib
import json
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from pipeline.checkpoints.relative_paths import is_below
from pipeline.errors import UserError, reading_checkpoint
from pipeline.records.file_hashes import TITLES, Algorithm, Done, FileRecord, files_below, hashed_again, sha256, silent
from pipeline.records.run_folder import read_json

NAME = "manifest.json"
FORMAT = 3
"""1: `provenance` might be missing. 2: it is always there, and files have SHA-256. 3: files have BLAKE3 or SHA-256."""
UNKNOWN_ORIGIN = {"flops": "unknown"}
"""The provenance of what nobody has kept records of."""


def _below(name: str) -> str:
    if not is_below(name):
        raise ValueError("this leads out of the folder")
    return name


class Manifest(BaseModel):
    """The content of manifest.json but for its own hash; further keys are kept.

    kind: train, expand, reshard or export. layout and the keys that belong to it: as in `CheckpointLayout`. source: the
    checkpoint it was made from, with hashes. files: by their path below the folder.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    format: Literal[3] = 3
    kind: str | None = None
    layout: str | None = None
    zero_stage: int | None = None
    world_size: int | None = None
    bf16: bool | None = None
    fp32_sums: bool | None = None
    dtype: str | None = None
    step: int = 0
    method: str | None = None
    optimizer_state: str | None = None
    lossless: bool | None = None
    lossy: list[str] | None = None
    verification: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    seed: int | None = None
    source: dict[str, Any] | None = None
    provenance: dict[str, Any]
    files: dict[Annotated[str, AfterValidator(_below)], FileRecord]

    def facts(self) -> dict[str, Any]:
        """What was recorded, as JSON has it, without the files and the provenance."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"files", "provenance"})

    def text(self) -> str:
        """The content of the file, its own hash last."""
        facts = {key: value for key, value in self.facts().items() if key != "format"}
        files = {name: self.files[name].model_dump() for name in sorted(self.files)}
        content = {"format": FORMAT, **facts, "provenance": self.provenance, "files": files}
        return _text({**content, "sha256": own_hash(content)})


def own_hash(content: dict[str, Any]) -> str:
    """SHA-256 of a manifest's content, in which it is not itself."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _text(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def read(folder: Path) -> Manifest:
    """The manifest of a checkpoint, checked against itself and against the sizes of its files. Raises UserError."""
    with reading_checkpoint(folder):
        content = parse(folder / NAME)
        _require_sizes(folder, content.files)
    return content


def _require_sizes(folder: Path, files: dict[str, FileRecord]) -> None:
    for name, record in files.items():
        path = folder / name
        size = path.stat().st_size if path.exists() else None
        if size is not None and not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: no regular file; remove it, or use an older checkpoint")
        if size != record.size:
            stored = "missing" if size is None else f"{size} bytes"
            raise UserError(f"{path}: {stored}, the manifest says {record.size} bytes; use an older checkpoint")


def read_if_any(folder: Path) -> Manifest | None:
    """The same; None for a foreign checkpoint."""
    return read(folder) if (folder / NAME).exists() else None


def parse(path: Path) -> Manifest:
    """The manifest in a file that is to the byte what was written: another spelling of the same numbers is damage too.
    Older formats are upgraded. Raises UserError for damage, and for a format that is newer than this program."""
    content = read_json(path)
    _require_known_format(path, content)
    unchanged = path.read_bytes() == _text(content).encode()
    if not unchanged or content.pop("sha256", None) != own_hash(content):
        raise _damaged(path)
    try:
        return Manifest.model_validate(_upgraded(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg']}; the manifest is damaged, use an older checkpoint") from error


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: the manifest does not match its own hash; the checkpoint is damaged, use an older one")


def _require_known_format(path: Path, content: dict[str, Any]) -> None:
    number = content.get("format")
    if isinstance(number, int) and number > FORMAT:
        versions = content.get("versions")
        writer = versions.get("lemon") if isinstance(versions, dict) else None
        release = f"lemon {writer} or newer" if writer else "a newer release of lemon"
        raise UserError(f"{path}: manifest format {number}, this release reads up to {FORMAT}; install {release}")


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    return {"provenance": UNKNOWN_ORIGIN, **content, "format": FORMAT} if content.get("format") in (1, 2) else content


def listing(folder: Path) -> list[str]:
    """The files below `folder`, but for the manifest."""
    return [name for name in files_below(folder) if name != NAME]


def verify(folder: Path, workers: int = 1, done: Done = silent) -> Manifest:
    """Like `read`, and every byte hashed, in `workers` threads. Raises UserError naming the first file that differs."""
    content = read(folder)
    with reading_checkpoint(folder):
        _require_same(folder, content.files, hashed_again(folder, content.files, workers, done))
    return content


def verify_share(folder: Path, number: int, of: int) -> None:
    """`verify` for one of `of` processes, which share the files out; each looks at its own alone. Raises UserError
    naming the first that differs."""
    with reading_checkpoint(folder):
        files = dict(sorted(parse(folder / NAME).files.items())[number::of])
        _require_sizes(folder, files)
        _require_same(folder, files, hashed_again(folder, files))


def verify_files(folder: Path, names: Iterable[str]) -> None:
    """Like `read`, and every byte of these files hashed, as far as the manifest has them. Raises UserError naming the
    first that differs."""
    recorded = read(folder).files
    files = {name: recorded[name] for name in names if name in recorded}
    with reading_checkpoint(folder):
        _require_same(folder, files, hashed_again(folder, files))


def _require_same(folder: Path, expected: dict[str, FileRecord], actual: dict[str, FileRecord]) -> None:
    for name, file in expected.items():
        if actual[name].digest != file.digest:
            raise UserError(
                f"{folder / name}: its {TITLES[file.algorithm]} is not the manifest's; the file is damaged, "
                "use an older checkpoint"
            )


@dataclass(frozen=True)
class Origin:
    """The checkpoint that another one is made from: its files are hashed while that is written. expected: what its
    manifest says of them; None without a manifest."""

    folder: Path
    expected: dict[str, FileRecord] | None

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Raises UserError for a manifest that contradicts itself or the sizes of its files."""
        content = read_if_any(folder)
        return cls(folder, content.files if content else None)

    def files(self, algorithm: Algorithm) -> dict[Path, Algorithm]:
        """What is to be hashed, and by what: as the manifest has it; without one by `algorithm`."""
        if self.expected is None:
            return {self.folder / name: algorithm for name in listing(self.folder)}
        return {self.folder / name: file.algorithm for name, file in self.expected.items()}

    @property
    def known(self) -> dict[str, Any]:
        """What the new manifest says of it that is known before it is hashed."""
        seal = {} if self.expected is None else {"manifest_sha256": sha256(self.folder / NAME)}
        return {"path": str(self.folder), **seal}

    def require(self, hashed: dict[str, FileRecord]) -> None:
        """Raises UserError where a file is not what the manifest says."""
        if self.expected is not None:
            _require_same(self.folder, {name: self.expected[name] for name in hashed}, hashed)

    def facts(self, hashed: dict[Path, FileRecord]) -> dict[str, Any]:
        """What the new manifest says of it: hashes checked where it has a manifest, else recorded. Raises UserError for
        damage."""
        files = {str(path.relative_to(self.folder)): file for path, file in hashed.items()}
        if self.expected is None:
            return {**self.known, "files": {name: file.model_dump() for name, file in sorted(files.items())}}
        _require_same(self.folder, self.expected, files)
        return self.known
