"""What all parts of one checkpoint have in common: where it comes from, which files it has, how it is completed."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline.checkpoints import manifest
from pipeline.checkpoints.publish import Completed
from pipeline.checkpoints.serialization.byte_stream import Bytes, OutputFile
from pipeline.errors import UserError
from pipeline.records.file_hashes import Algorithm
from pipeline.records.run_folder import read_json, write_json
from pipeline.records.versions import installed

FILE, FORMAT = "job.json", 1
SHORT = 40
"""Characters of a value that a message shows."""
C = TypeVar("C", bound=Completed)


@dataclass(frozen=True)
class Part:
    """The part `number`, from 1 on, of `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """Of `2/8`. Raises UserError."""
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and int(of)):
            raise UserError(f"--part '{text}': a part is written i/n, such as 2/8 for the second of eight")
        if not 1 <= int(number) <= int(of):
            raise UserError(
                f"--part {text}: there is no part {number} of {of}; parts are numbered from 1, and where single tasks "
                "of an array run again, n is still that of the whole array"
            )
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"part {self.number} of {self.of}"


@dataclass(frozen=True)
class Job(Generic[C]):
    """A checkpoint to write in parts.

    name: of the command. known: what its manifest will say, as far as that is known before; more: what else decides its
    numbers. config: the content of its config.json, where it has one of its own. files: its files, drafted in a folder.
    complete: verifies a staged folder in which all of them are, and puts beside them what goes along, from what the
    manifest says of the source.
    """

    name: str
    known: dict[str, Any]
    more: dict[str, Any]
    config: bytes | None
    origin: manifest.Origin
    algorithm: Algorithm
    files: Callable[[Path], list[OutputFile]]
    complete: Callable[[Path, dict[str, Any]], C]

    def facts(self, part: Part, files: Sequence[OutputFile]) -> dict[str, Any]:
        """What all parts must agree about, as JSON has it."""
        facts = {
            "format": FORMAT,
            "parts": part.of,
            "hash": self.algorithm,
            **self.known,
            **self.more,
            "config": None if self.config is None else _digest(self.config),
            "source": str(self.origin.folder),
            "content of the source": _digest(*self._source()),
            "files": _digest(*(_listed(file) for file in files)),
            "versions": installed(),
        }
        return dict(json.loads(json.dumps(facts)))

    def _source(self) -> Iterator[str]:
        """Its files as they are now."""
        for path in self.origin.files(self.algorithm):
            status = path.stat()
            yield f"{path.relative_to(self.origin.folder)} {status.st_size} {status.st_mtime_ns}"

    def require_result(self, out: Path) -> None:
        """Raises UserError where the checkpoint `out` is not what this job makes."""
        there = manifest.parse(out / manifest.NAME).facts() if (out / manifest.NAME).exists() else {}
        known = {**json.loads(json.dumps({**self.known, **self.more})), "source": self.origin.known}
        there["source"] = {key: (there.get("source") or {}).get(key) for key in self.origin.known}
        differs = [key for key, value in known.items() if there.get(key) != value]
        if self.config is not None and (out / "config.json").exists():
            differs += ["config"] if (out / "config.json").read_bytes() != self.config else []
        if differs:
            raise UserError(
                f"{out}: exists already and is another checkpoint than this command makes ({', '.join(differs)}); "
                "choose another --out or remove it"
            )


def _digest(*content: str | bytes) -> str:
    digest = hashlib.sha256()
    for each in content:
        digest.update(each.encode() + b"\n" if isinstance(each, str) else each)
    return digest.hexdigest()


def _listed(file: OutputFile) -> str:
    """A file by its name and size; a small one by its content."""
    content = f" {_digest(file.content.data)}" if isinstance(file.content, Bytes) else ""
    return f"{file.name} {file.size}{content}"


def require_same_job(folder: Path, facts: dict[str, Any], part: Part) -> None:
    """Record what all parts must agree about, unless another part has. Raises UserError that names the first that
    differs."""
    path = folder / FILE
    draft = folder / f"job-{part.number}-{os.getpid()}.json"
    write_json(draft, facts)
    try:
        with suppress(FileExistsError):  # another part's, which is held against this one's below
            os.link(draft, path)  # whole or not at all, and only the first
    finally:
        draft.unlink()
    there = read_json(path)
    for key in {**there, **facts}:
        if there.get(key) != facts.get(key):
            raise UserError(
                f"{path}: {part} has {_shown(key, facts.get(key), there.get(key))}; give all parts the same arguments, "
                f"source and versions, or remove {folder} to start over"
            )


def _shown(key: str, mine: object, theirs: object) -> str:
    if len(f"{mine}{theirs}") > 2 * SHORT:
        return f"other {key} than the part that began"
    return f"{key} {mine}, the part that began {theirs}"
