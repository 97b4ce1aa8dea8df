"""One save, as a thread of each worker carries it out: every rank writes its files, hashes them on the way, reads them
back and leaves a record of them; when the records of all ranks are there, rank 0 publishes the checkpoint.

Nothing here is a collective, for those belong to the training that goes on meanwhile.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.checkpoints import manifest, publish
from pipeline.checkpoints.finite import Spans, not_finite
from pipeline.checkpoints.serialization.frozen_tree import FrozenTree
from pipeline.checkpoints.serialization.writer_pool import WriteTask
from pipeline.errors import AGAIN, UserError, placed, writing_to
from pipeline.records.file_hashes import FASTEST, Algorithm, FileRecord, hashes, record
from pipeline.records.run_folder import read_json, write_json

BETWEEN_LOOKS = 0.02
"""Seconds between two looks for the other ranks' records."""


class Abandoned(Exception):  # noqa: N818 - no error, an order
    """Another rank's part has failed: nothing will be published."""


def _nothing() -> None:
    """Nothing is to be done."""


@dataclass(frozen=True)
class Publication:
    """What rank 0 publishes. before: done when all files are there; behind: when the checkpoint is. algorithm: by which
    all ranks hash their files."""

    final: Path
    facts: dict[str, Any]
    before: Callable[[], None] = _nothing
    behind: Callable[[], None] = _nothing
    algorithm: Algorithm = FASTEST


@dataclass(eq=False)
class SaveInFlight:
    """This rank's part of it. begun: when, of `time.perf_counter`; files, beside: what it writes by name, small things
    beside the others; pause: seconds for which the training stood still; seconds: until it was published (of rank 0);
    moved: bytes written and read back so far."""

    publication: Publication
    rank: int
    world: int
    begun: float
    files: dict[str, FrozenTree] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    spans: Sequence[Spans] = ()
    pause: float = 0.0
    seconds: float = 0.0
    moved: int = 0
    written: "Future[None]" = field(default_factory=Future)
    published: "Future[None]" = field(default_factory=Future)
    abandoned: threading.Event = field(default_factory=threading.Event)

    @property
    def staging(self) -> Path:
        """Holds the folder that becomes the checkpoint, and the ranks' records."""
        return self.publication.final.with_name(publish.STAGING + self.publication.final.name)

    @property
    def staged(self) -> Path:
        return self.staging / self.publication.final.name

    @property
    def failed(self) -> bool:
        """Whether this rank's part has."""
        return any(future.done() and future.exception() for future in (self.written, self.published))

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self._carry_out(self.written, self._write)
        self.files.clear()
        self._carry_out(self.published, self._publish if self.rank == 0 and not self.failed else _nothing)

    def _carry_out(self, future: "Future[None]", work: Callable[[], None]) -> None:
        try:
            with placed(f"{self.publication.final} is not published, what was saved before it stays"):
                work()
        except BaseException as error:  # the main thread tells it
            future.set_exception(error)
        else:
            future.set_result(None)

    def _write(self) -> None:
        """Raises UserError for numbers that are not finite, what cannot be written, and what reads differently."""
        for name, text in self.beside.items():
            with writing_to(self.staged / name, AGAIN):
                (self.staged / name).write_text(text, encoding="utf-8")
        records = {}
        for name, tree in self.files.items():
            if place := not_finite(tree.thawed(), self.spans):
                raise UserError(
                    f"'{place}' of {name} holds numbers that are not finite; lower schedule.peak, lengthen the "
                    "warm-up, or clip"
                )
            task = WriteTask(tree.file(name, self.staged, AGAIN), self.staged, self.publication.algorithm, AGAIN)
            records[name] = task.run(self._go_on)
            task.finish(records[name])
            with writing_to(task.path, AGAIN):
                require_read_back(task.path, records[name], self._go_on)
        with writing_to(self.staging, AGAIN):
            write_json(self._record_of(self.rank), {name: each.model_dump() for name, each in records.items()})

    def _go_on(self, done: int) -> None:
        self.moved += done
        if self.abandoned.is_set():
            raise Abandoned

    def _record_of(self, rank: int) -> Path:
        return self.staging / f"rank-{rank}.json"

    def _publish(self) -> None:
        files = {name: each for rank in range(self.world) for name, each in self._records(rank).items()}
        names = [name for name in manifest.listing(self.staged) if name not in files]
        files |= hashes(self.staged, names, self.publication.algorithm)
        with writing_to(self.publication.final, AGAIN):
            self.publication.before()
            publish.publish(self.staged, self.publication.final, self.publication.facts, files)
            shutil.rmtree(self.staging)
            self.seconds = time.perf_counter() - self.begun
            self.publication.behind()

    def _records(self, rank: int) -> dict[str, FileRecord]:
        """What a rank has written, once it has."""
        path = self._record_of(rank)
        while not path.exists():
            if self.abandoned.wait(BETWEEN_LOOKS):
                raise Abandoned
        return {name: FileRecord.model_validate(each) for name, each in read_json(path).items()}


def require_read_back(path: Path, expected: FileRecord, done: Callable[[int], None]) -> None:
    """Raises UserError where a file that was synced to disk reads as something else than was written."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if record(path, expected.algorithm, done) != expected:
        raise UserError(f"{path}: reads as something else than was written; check the disk")
