"""Text sources -> documents.

A corpus is read from its files as often as it is needed and never held in memory whole. Text files (.txt)
have a blank line between documents; without any blank line, each line is a document. Tables (.jsonl, .parquet,
hub) have a document per row, in one column.
"""

import gzip
import io
import json
import lzma
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from pipeline.config.schema import TextData
from pipeline.data import embedded
from pipeline.data.sources import from_hub, is_local, local_files, one_line, without
from pipeline.errors import UserError

PLAIN = tuple(f"{kind}{packed}" for kind in (".txt", ".jsonl") for packed in ("", ".xz", ".gz", ".zst"))
KNOWN = (*PLAIN, ".parquet")
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error, pa.ArrowException)
"""What the readers raise on a file that is damaged or not what its name says."""

HELD_OUT = 0.1
"""The largest share of the text that is cut off for evaluation."""


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again and again, each time in the same order."""

    name: str
    read: Callable[[], Iterable[str]]

    def __iter__(self) -> Iterator[str]:
        return (document for document in self.read() if not document.isspace() and document)

    def without(self, documents: Iterable[str]) -> "Corpus":
        """All but `documents`, and copies of them."""
        out = {fingerprint(document) for document in documents}
        return Corpus(self.name, lambda: (document for document in self if fingerprint(document) not in out))


def corpora(data: TextData) -> tuple[Corpus, Corpus | None]:
    """(training text, held-out text or None when it has to be cut from the former). Raises UserError."""
    if data.subset and (data.dataset == "embedded" or is_local(data.dataset)):
        raise UserError(f"data.subset: '{data.subset}' goes with a hub data set, and {data.dataset} is none; remove it")
    held_out = None
    if data.evaluation is not None and is_local(data.evaluation):
        held_out = local_files(data.evaluation, KNOWN)
    elif data.evaluation is not None and (data.dataset == "embedded" or is_local(data.dataset)):
        raise UserError(f"{data.evaluation}: no such file or folder; check data.evaluation")
    if data.dataset == "embedded":
        known = list(embedded.documents())
        training = Corpus("embedded", lambda: known)
    elif is_local(data.dataset):
        files = local_files(data.dataset, KNOWN)
        training = _from_files(without(files, held_out) if held_out else files, data.column)
    else:
        training = from_table(data, "train")
    if held_out:
        return training, _from_files(held_out, data.column)
    return training, from_table(data, str(data.evaluation)) if data.evaluation else None


def _from_files(files: list[Path], column: str) -> Corpus:
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return Corpus(name, lambda: (document for file in files for document in read_file(file, column)))


def from_table(data: TextData, split: str) -> Corpus:
    """A split of a hub data set. Raises UserError."""
    architecture = from_hub(str(data.dataset), data.subset, split)
    where = f"{data.dataset}, split {split}"
    _has_column(where, data.column, architecture.column_names)
    parts = architecture.select_columns([data.column])
    return Corpus(
        where,
        lambda: (
            document
            for part in parts.iter(batch_size=1000)
            for document in _texts(part[data.column], where, data.column)
        ),
    )


def read_file(path: Path, column: str) -> Iterator[str]:
    """The documents of one file. Raises UserError when it is damaged or lacks the column."""
    try:
        if path.name.lower().endswith(".parquet"):
            yield from _parquet(path, column)
        elif ".jsonl" in path.name.lower():
            with _opened(path) as lines:
                yield from _jsonl(lines, path, column)
        else:
            with _opened(path) as lines:
                separated = _has_blank_line(lines)
            with _opened(path) as lines:
                yield from _paragraphs(lines) if separated else lines
    except UNREADABLE as error:
        raise UserError(
            f"{path}: cannot read it ({one_line(error)}); the file is damaged or not what its name says"
        ) from error


def _opened(path: Path) -> TextIO:
    kind = path.suffix.lower()
    if kind == ".xz":
        return lzma.open(path, "rt", encoding="utf-8-sig")
    if kind == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    if kind == ".zst":  # pyarrow tells of a truncated stream, where python-zstandard ends quietly
        return io.TextIOWrapper(pa.input_stream(str(path), compression="zstd"), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _has_blank_line(lines: Iterable[str]) -> bool:
    """Whether a blank line stands between two lines that are not."""
    begun = blank = False
    for line in lines:
        if not line.strip():
            blank = begun
        elif blank:
            return True
        else:
            begun = True
    return False


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    held: list[str] = []
    for line in lines:
        if line.strip():
            held.append(line)
        elif held:
            yield "".join(held)
            held = []
    yield "".join(held)


def _jsonl(lines: Iterable[str], path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({error.msg}); a line holds one object") from error
        _has_column(f"{path}, line {number}", column, row if isinstance(row, dict) else ())
        yield from _texts([row[column]], f"{path}, line {number}", column)


def _parquet(path: Path, column: str) -> Iterator[str]:
    with pyarrow.parquet.ParquetFile(path) as file:
        _has_column(path, column, file.schema_arrow.names)
        for part in file.iter_batches(batch_size=1000, columns=[column]):
            yield from _texts(part.column(0).to_pylist(), path, column)


def _has_column(where: object, column: str, present: Iterable[str]) -> None:
    if column not in present:
        raise UserError(f"{where}: no column '{column}'; it has {', '.join(present) or 'none'}; set data.column")


def _texts(values: list, where: object, column: str) -> Iterator[str]:
    """The strings among `values`; a missing value is no document."""
    for value in values:
        if isinstance(value, str):
            yield value
        elif value is not None:
            raise UserError(f"{where}: column '{column}' holds {type(value).__name__}, not text; set data.column")


def fingerprint(document: str) -> int:
    """64 bits that stand for a document, the same on every machine."""
    return int.from_bytes(sha256(document.encode("utf-8", "surrogatepass")).digest()[:8], "big")


@dataclass(frozen=True)
class Census:
    """Fingerprint and length (characters) of each document of a corpus, in its order; 16 bytes a document."""

    fingerprints: np.ndarray
    characters: np.ndarray

    @classmethod
    def of(cls, corpus: Corpus) -> "Census":
        """Read `corpus` once. Raises UserError when it holds no text."""
        fingerprints, characters = array("Q"), array("Q")
        for document in corpus:
            fingerprints.append(fingerprint(document))
            characters.append(len(document))
        if not fingerprints:
            raise UserError(f"{corpus.name}: no text in it; check data.dataset and data.column")
        return cls(np.array(fingerprints), np.array(characters))


def hold_out(corpus: Corpus, census: Census, characters: int) -> list[str]:
    """Documents of `corpus` to evaluate on: about `characters` in all, at most HELD_OUT of the text.

    Documents are taken by rank of their fingerprint, whatever their order or place, and listed by it, so that any
    beginning of the list is a fair sample. Equal ones go together; one that would break the bound is passed over.
    """
    limit = int(HELD_OUT * int(census.characters.sum()))
    order = np.argsort(census.fingerprints, kind="stable")
    prints, firsts = np.unique(census.fingerprints[order], return_index=True)
    sizes = np.add.reduceat(census.characters[order], firsts)
    chosen: set[int] = set()
    taken = 0
    for mark, size in zip(prints, sizes, strict=True):
        if taken >= characters:
            break
        if taken + int(size) <= limit:
            chosen.add(int(mark))
            taken += int(size)
    return sorted((document for document in corpus if fingerprint(document) in chosen), key=fingerprint)
