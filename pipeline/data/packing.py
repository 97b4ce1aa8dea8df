"""Documents -> ids in a file, tokenised by several processes; what a kill leaves is gone on with.

The main process reads the documents in order and cuts them into parts of about PART_CHARACTERS; a pool of processes
tokenises these, and the main process appends their ids in order. So the file is the same, whatever the number of
processes, and no more than two parts for each process are in memory.

Beside the file of ids lies a journal with a line for each part that is in it: the key of the part, and the count and
SHA-256 of its ids. A call that follows a kill keeps the parts of which every byte is as written, cuts off what lies
behind them, and tokenises only what is missing.
"""

import hashlib
import json
import logging
import os
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np

from pipeline.data.census import Facts, Tally
from pipeline.data.documents import Corpus, fingerprint
from pipeline.data.reading_progress import ReadingProgress
from pipeline.data.tokenizers import Tokenizer
from pipeline.errors import UserError
from pipeline.records.processes import Helpers, be_a_helper

logger = logging.getLogger(__name__)

PART_CHARACTERS = 1 << 20
"""A part is full when it has so many: the least that is tokenised again after a kill."""
PARTS_AHEAD = 2
"""Parts that are read before they are needed, for each process."""


class TextChangedError(Exception):
    """The corpus is not the one that was begun with."""


def id_type(vocab_size: int) -> np.dtype[Any]:
    """The dtype in which ids are stored: uint16 where the vocabulary fits, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


@dataclass
class Part:
    """Successive documents. key: their fingerprints, and the tokenizer's digest, hashed. read: characters of the corpus
    up to its end."""

    documents: list[str]
    key: str
    read: int


class Reading:
    """One pass over a corpus that leaves out the documents of some fingerprints and counts all."""

    def __init__(self, corpus: Corpus, excluded: set[int], tokenizer: str):
        """tokenizer: its digest."""
        self.corpus, self.excluded, self.tokenizer, self.tally = corpus, excluded, tokenizer, Tally()

    def parts(self) -> Iterator[Part]:
        """The documents in their order, PART_CHARACTERS or one document at a time."""
        documents: list[str] = []
        numbers, characters = array("Q"), 0
        for document in self.corpus:
            number = fingerprint(document)
            self.tally.add(document, number)
            if number in self.excluded:
                continue
            documents.append(document)
            numbers.append(number)
            characters += len(document)
            if characters >= PART_CHARACTERS:
                yield self._part(documents, numbers)
                documents, numbers, characters = [], array("Q"), 0
        if documents:
            yield self._part(documents, numbers)

    def _part(self, documents: list[str], numbers: "array[int]") -> Part:
        key = hashlib.sha256(self.tokenizer.encode() + numbers.tobytes()).hexdigest()
        return Part(documents, key, self.tally.characters)


def tokenised(parts: Iterable[Part], tokenizer: Tokenizer, processes: int) -> Iterator[tuple[Part, np.ndarray]]:
    """Each part, emptied, with its ids (count,), in order. Raises UserError where a process is killed."""
    if processes == 1:
        yield from ((_emptied(part), joined(part.documents, tokenizer)) for part in parts)
        return
    running = deque[tuple[Part, Future[np.ndarray]]]()
    with ProcessPoolExecutor(processes, Helpers(), initializer=_begin, initargs=(tokenizer, os.getpid())) as pool:
        try:
            for part in parts:
                running.append((_emptied(part), pool.submit(_ids, part.documents)))
                if len(running) > PARTS_AHEAD * processes:
                    yield _next(running)
            while running:
                yield _next(running)
        except BrokenProcessPool as error:
            raise UserError(
                "a process that tokenised was killed (out of memory?); run the command again to go on, on fewer CPUs "
                "with taskset -c 0-3, say"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _emptied(part: Part) -> Part:
    return Part([], part.key, part.read)


def _next(running: deque[tuple[Part, "Future[np.ndarray]"]]) -> tuple[Part, np.ndarray]:
    part, future = running.popleft()
    return part, future.result()


_tokenizer: Tokenizer | None = None
"""Set in the pool's processes alone, by `_begin`."""


def _begin(tokenizer: Tokenizer, parent: int) -> None:
    """The start of every process of the pool."""
    global _tokenizer
    be_a_helper(parent)
    _tokenizer = tokenizer


def _ids(documents: list[str]) -> np.ndarray:
    assert _tokenizer is not None
    return joined(documents, _tokenizer)


def joined(documents: list[str], tokenizer: Tokenizer) -> np.ndarray:
    """(count,): the ids of the documents, [SEP] between two that have any."""
    ids: list[int] = []
    for own in filter(None, tokenizer.encode(documents)):
        ids += [tokenizer.special["sep"], *own] if ids else own
    return np.array(ids, dtype=id_type(tokenizer.size))


@dataclass(frozen=True)
class KeptPart:
    """A line of the journal."""

    key: str
    ids: int
    sha256: str


class IdFile:
    """A file of ids that grows part by part, and its journal; to be used as a context."""

    def __init__(self, path: Path, journal: Path, dtype: np.dtype[Any], separator: int):
        """Keeps of an earlier file the parts that are whole. separator: the id between two documents."""
        self.dtype, self.separator = dtype, np.array([separator], dtype=dtype)
        self.kept = _whole_parts(path, journal, dtype.itemsize)
        self.count = sum(part.ids for part in self.kept)
        self._ids = _cut(path, self.count * dtype.itemsize)
        self._journal = _cut(journal, sum(len(_line(part)) for part in self.kept))

    def append(self, part: Part, ids: np.ndarray) -> None:
        if self.count and len(ids):
            ids = np.concatenate([self.separator, ids])
        content = ids.tobytes()
        self._ids.write(content)
        self._ids.flush()
        self._journal.write(_line(KeptPart(part.key, len(ids), hashlib.sha256(content).hexdigest())))
        self._journal.flush()
        self.count += len(ids)

    def end(self, rows: int, width: int) -> None:
        """Leave whole rows of `width` ids."""
        self._ids.truncate(rows * width * self.dtype.itemsize)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ids.close()
        self._journal.close()


def _line(part: KeptPart) -> bytes:
    return (json.dumps(asdict(part)) + "\n").encode()


def _cut(path: Path, size: int) -> BinaryIO:
    """The file, opened for writing behind its first `size` bytes, where it ends now."""
    file = path.open("r+b" if path.exists() else "w+b")
    file.truncate(size)
    file.seek(size)
    return file


def _whole_parts(path: Path, journal: Path, itemsize: int) -> list[KeptPart]:
    """The parts of a file up to the first that is not as written."""
    kept: list[KeptPart] = []
    if not (path.exists() and journal.exists()):
        return kept
    with path.open("rb") as file, journal.open("rb") as lines:
        for line in lines:
            try:
                part = KeptPart(**json.loads(line))
            except (ValueError, TypeError):  # half a line
                break
            if hashlib.sha256(file.read(part.ids * itemsize)).hexdigest() != part.sha256:
                break
            kept.append(part)
    return kept


def pack(reading: Reading, tokenizer: Tokenizer, width: int, file: IdFile, expected: Facts, processes: int) -> int:
    """Write the ids of a corpus as whole rows of `width`, behind what the file has; returns how many rows.

    expected: what the corpus was when it was counted (`Tally.facts`). Raises TextChangedError where it is another one
    by now.
    """
    if file.kept:
        logger.info(f"text: {len(file.kept):,} parts, {file.count:,} tokens, are kept from before")
    missing, characters = _missing(reading, file), int(expected["characters"])
    processes = min(processes, 1 + characters // PART_CHARACTERS)
    progress: ReadingProgress | None = None
    for part, ids in tokenised(missing, tokenizer, processes):
        progress = progress or ReadingProgress("tokenising", characters, part.read)
        file.append(part, ids)
        progress.show(part.read)
    if reading.tally.facts() != expected:
        raise TextChangedError
    file.end(file.count // width, width)
    return file.count // width


def _missing(reading: Reading, file: IdFile) -> Iterator[Part]:
    """The parts that the file does not have."""
    kept = iter(file.kept)
    for part in reading.parts():
        before = next(kept, None)
        if before is None:
            yield part
        elif before.key != part.key:
            raise TextChangedError


def pack_first(corpus: Iterable[str], tokenizer: Tokenizer, width: int, path: Path, most: int) -> int:
    """Write the ids of `corpus` as whole rows of `width`, at most `most`, and read no more of it; returns how many."""
    reading = Reading(Corpus("", lambda: corpus), set(), "")
    ids = np.empty(0, dtype=id_type(tokenizer.size))
    separator = np.array([tokenizer.special["sep"]], dtype=ids.dtype)
    for _, more in tokenised(reading.parts(), tokenizer, processes=1):
        ids = np.concatenate([ids, separator, more]) if len(ids) and len(more) else np.concatenate([ids, more])
        if len(ids) >= most * width:
            break
    rows = min(most, len(ids) // width)
    path.write_bytes(ids[: rows * width].tobytes())
    return rows
