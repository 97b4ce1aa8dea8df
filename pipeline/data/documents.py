"""Text sources -> documents.

A corpus is read from its files as often as it is needed and never kept in memory whole. Text files (.txt)
have a blank line between documents; without any blank line, each line is a document. Tables (.jsonl, .parquet,
hub) have a document per row, in one column.
"""

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet

from pipeline.config.data import TextData
from pipeline.data import embedded
from pipeline.data.sources import JSONL, TABLE, Embedded, HubSplit, LocalFiles, Source, require_column, resolve
from pipeline.errors import UserError, one_line

ROWS_AT_ONCE = 1000
UNREADABLE = (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError, zlib.error, pa.ArrowException)
"""What the readers raise on a file that is damaged or not what its name says."""


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again and again, each time in the same order."""

    name: str
    read: Callable[[], Iterable[str]]

    def __iter__(self) -> Iterator[str]:
        return (document for document in self.read() if not document.isspace() and document)


def corpora(data: TextData) -> tuple[Corpus, Corpus | None]:
    """(training text, evaluation text or None where it is to be cut from the former). Raises UserError."""
    training, evaluation = resolve(data)
    return open_corpus(training, data.column), open_corpus(evaluation, data.column) if evaluation else None


def open_corpus(source: Source, column: str) -> Corpus:
    """The documents of a source; of a table, those in `column`. Raises UserError."""
    match source:
        case Embedded():
            documents = list(embedded.documents())
            return Corpus("embedded", lambda: documents)
        case LocalFiles(paths):
            name = str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
            return Corpus(name, lambda: (document for path in paths for document in read_file(path, column)))
        case HubSplit():
            return _hub_corpus(source, column)


def _hub_corpus(source: HubSplit, column: str) -> Corpus:
    table, where = source.load(), f"{source.name}, split {source.split}"
    require_column(where, column, table.column_names)
    rows = table.select_columns([column])

    def read() -> Iterator[str]:
        for batch in rows.iter(batch_size=ROWS_AT_ONCE):
            yield from _texts(batch[column], where, column)

    return Corpus(where, read)


def read_file(path: Path, column: str) -> Iterator[str]:
    """The documents of one file. Raises UserError when it is damaged or lacks the column."""
    try:
        if path.name.lower().endswith(TABLE):
            yield from _parquet(path, column)
        elif path.name.lower().endswith(JSONL):
            with _open_text(path) as lines:
                yield from _jsonl(lines, path, column)
        else:
            with _open_text(path) as lines:
                separated = _has_blank_line(lines)
            with _open_text(path) as lines:
                yield from _paragraphs(lines) if separated else lines
    except UNREADABLE as error:
        raise UserError(
            f"{path}: cannot read it ({one_line(error)}); the file is damaged or not what its name says"
        ) from error


def _open_text(path: Path) -> TextIO:
    compression = path.suffix.lower()
    if compression == ".xz":
        return lzma.open(path, "rt", encoding="utf-8-sig")
    if compression == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    if compression == ".zst":  # pyarrow reports a truncated stream, where python-zstandard ends quietly
        return io.TextIOWrapper(pa.input_stream(str(path), compression="zstd"), encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _has_blank_line(lines: Iterable[str]) -> bool:
    """Whether a blank line separates two lines that are not blank."""
    text_seen = blank_after_text = False
    for line in lines:
        if not line.strip():
            blank_after_text = text_seen
        elif blank_after_text:
            return True
        else:
            text_seen = True
    return False


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph)
            paragraph = []
    yield "".join(paragraph)


def _jsonl(lines: Iterable[str], path: Path, column: str) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # also of too long a number, or brackets in brackets
            reason = getattr(error, "msg", None) or one_line(error)
            raise UserError(
                f"{path}, line {number}: not valid JSON ({reason}); each line must be one object"
            ) from error
        require_column(f"{path}, line {number}", column, row if isinstance(row, dict) else ())
        yield from _texts([row[column]], f"{path}, line {number}", column)


def _parquet(path: Path, column: str) -> Iterator[str]:
    with pyarrow.parquet.ParquetFile(path) as file:
        require_column(path, column, file.schema_arrow.names)
        for part in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column]):
            yield from _texts(part.column(0).to_pylist(), path, column)


def _texts(values: list[object], where: object, column: str) -> Iterator[str]:
    """The strings among `values`; a missing value is no document."""
    for value in values:
        if isinstance(value, str):
            _require_characters(value, where)
            yield value
        elif value is not None:
            raise UserError(f"{where}: column '{column}' contains {type(value).__name__}, not text; set data.column")


def _require_characters(text: str, where: object) -> None:
    """Raises UserError for half a surrogate pair, which JSON can say and which is no character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise UserError(
            f"{where}: character {error.start + 1} of the text is half a surrogate pair ({half!a}); repair or remove it"
        ) from error


def fingerprint(document: str) -> int:
    """The first 64 bits of a document's SHA-256: the same on every machine."""
    return int.from_bytes(sha256(document.encode("utf-8", "surrogatepass")).digest()[:8], "big")
