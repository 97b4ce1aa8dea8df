"""One checkpoint that several processes write, on as many nodes as share its folder: each writes its part of the files,
in any order and any number of times, and whoever ends last publishes.

OUT.parts/
  job.json            what all parts must agree about; the first one writes it
  files/              every file appears in it whole, by a rename
  sealed/             NAME.json: size and digest of a file that is whole
  read/               the same of the source's files, which the parts share as well
  part-2.json         part 2 is whole: all of its records
  part-2.lock         held by the process that writes part 2; publish.lock by the one that publishes
  drafts/             what is being written
  result-*/           becomes the checkpoint: links to all files, and what goes along; of one process that publishes

Two processes on one part would write the same bytes under the same names, and two that publish have a folder each: so
nothing relies on a lock between nodes. The checkpoint appears by one rename, which one of them wins.
"""

import heapq
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from pipeline.checkpoints import publish
from pipeline.checkpoints.parts_job import C, Job, Part, require_same_job
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.checkpoints.serialization.byte_stream import OutputFile
from pipeline.checkpoints.serialization.writer_pool import Count, HashTask, WriteTask, carry_out
from pipeline.errors import UserError, writing_to
from pipeline.records.file_hashes import FileRecord, record
from pipeline.records.locks import lock
from pipeline.records.run_folder import read_json, write_json

logger = logging.getLogger(__name__)

FOLDER, FILES, PUBLISHING, RESULT = ".parts", "files", "publish.lock", "result-"
WRITTEN, READ = "sealed", "read"
"""Folders of records, and the keys of a part's own."""
Records = dict[str, FileRecord]
"""By the path below the result, or below the source."""


def write_part(job: Job[C], out: Path, part: Part, workers: int) -> tuple[Records, C] | None:
    """Write a part of the checkpoint `out`, and publish that where all parts are whole. Returns the records of the
    files that the parts wrote, and what has completed them; None where another part has published, or will. Raises
    UserError."""
    if _is_published(job, out, part):
        return None
    folder = out.with_name(out.name + FOLDER)
    with writing_to(folder, "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        with _held(folder, part), _drafts(folder, part) as drafts:
            files = job.files(drafts)
            require_same_job(folder, job.facts(part, files), part)
            _write(job, _share(job, files, drafts, folder, part), folder, part, workers)
        return _publish_if_whole(job, out, folder, part)


def _is_published(job: Job[C], out: Path, part: Part) -> bool:
    """Whether `out` is there, which is said. Raises UserError where it is anything else than this job makes."""
    if not os.path.lexists(out):
        return False
    job.require_result(out)
    logger.info(f"{job.name}: {out} is published; nothing is left to do for {part}")
    return True


@contextmanager
def _held(folder: Path, part: Part) -> Iterator[None]:
    """Raises UserError where another process writes this part."""
    path = folder / f"part-{part.number}.lock"
    with path.open("w") as file:
        if not lock(file):
            raise UserError(f"{path}: another process is writing {part}; wait for it or stop it")
        yield


@contextmanager
def _drafts(folder: Path, part: Part) -> Iterator[Path]:
    """A folder for this process alone. What a dead one left of this part is removed."""
    place = folder / "drafts"
    for left in place.glob(f"part-{part.number}-*"):
        shutil.rmtree(left, ignore_errors=True)
    drafts = place / f"part-{part.number}-{socket.gethostname()}-{os.getpid()}"
    drafts.mkdir(parents=True)
    try:
        yield drafts
    finally:
        shutil.rmtree(drafts, ignore_errors=True)


@dataclass(frozen=True)
class SealedTask:
    """A file to write or to hash, and the record that says it is done. name: below the result or the source. place:
    where a file that was written goes when it is whole."""

    task: WriteTask | HashTask
    name: str
    seal: Path
    place: Path | None = None

    @property
    def words(self) -> str:
        return self.task.words

    @property
    def size(self) -> int:
        return self.task.size

    @property
    def room(self) -> int:
        return self.task.room

    def run(self, count: Count) -> FileRecord:
        return self.task.run(count)

    def finish(self, record: FileRecord) -> None:
        self.task.finish(record)
        if self.place:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.task.path, self.place)
        self.seal.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.seal, record.model_dump())

    def sealed(self) -> FileRecord | None:
        """Its record, where the file is still what was sealed; a source's file is, or its job would be another."""
        try:
            before = FileRecord.model_validate(read_json(self.seal))
            now = record(self.place, before.algorithm) if self.place else before
        except (UserError, ValidationError, OSError):  # there is none, or no such file
            return None
        return before if now == before else None


def _share(job: Job[C], files: Sequence[OutputFile], drafts: Path, folder: Path, part: Part) -> list[SealedTask]:
    """What the part writes of the result and hashes of the source, about as many bytes as any other."""
    tasks = []
    for file in files:
        seal, place = folder / WRITTEN / f"{file.name}.json", folder / FILES / file.name
        tasks.append(SealedTask(WriteTask(file, drafts, job.algorithm), file.name, seal, place))
    for path, algorithm in job.origin.files(job.algorithm).items():
        name = str(path.relative_to(job.origin.folder))
        tasks.append(SealedTask(HashTask(path, algorithm), name, folder / READ / f"{name}.json"))
    owners = shares([task.size for task in tasks], part.of)
    return [task for task, owner in zip(tasks, owners, strict=True) if owner == part.number - 1]


def shares(sizes: Sequence[int], parts: int) -> list[int]:
    """Which part, from 0 on, takes each of the items: the largest first, each by whom has the least."""
    owners, loads = [0] * len(sizes), [(0, part) for part in range(parts)]
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        load, part = heapq.heappop(loads)
        owners[number] = part
        heapq.heappush(loads, (load + sizes[number], part))
    return owners


def _write(job: Job[C], tasks: Sequence[SealedTask], folder: Path, part: Part, workers: int) -> None:
    """Do what is not done yet, and record that the part is whole. Raises UserError, also where the source is not what
    its manifest says."""
    with ThreadPoolExecutor(workers) as pool:
        sealed = list(pool.map(SealedTask.sealed, tasks))
    done = [(task, record) for task, record in zip(tasks, sealed, strict=True) if record]
    left = [task for task, record in zip(tasks, sealed, strict=True) if not record]
    writes, kept = [task for task in left if task.place], sum(1 for task, _ in done if task.place)
    also = f"; {kept} are whole already" if kept else ""
    logger.info(f"{job.name}: {part} writes {len(writes)} files, {amount(sum(task.size for task in writes))}{also}")
    if left:
        _record_of(folder, part.number).unlink(missing_ok=True)
        done += zip(left, carry_out(left, folder, workers), strict=True)
    job.origin.require({task.name: record for task, record in done if not task.place})
    content: dict[str, dict[str, object]] = {WRITTEN: {}, READ: {}}
    for task, file in done:
        content[WRITTEN if task.place else READ][task.name] = file.model_dump()
    write_json(_record_of(folder, part.number), content)


def _record_of(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.json"


def _publish_if_whole(job: Job[C], out: Path, folder: Path, part: Part) -> tuple[Records, C] | None:
    """The part's own record was made just before: so a file system that shows others' late has looked again."""
    missing = [number for number in range(1, part.of + 1) if not _record_of(folder, number).exists()]
    if missing and not _is_published(job, out, part):
        listed = ", ".join(map(str, missing[:8])) + (", …" if len(missing) > 8 else "")
        logger.info(f"{job.name}: {part} is whole; whoever ends last publishes, there are still: {listed}")
    if missing:
        return None
    try:
        file = (folder / PUBLISHING).open("w")
    except FileNotFoundError:  # published and removed in between
        return None
    with file:
        if not lock(file, wait=0):
            logger.info(f"{job.name}: {part} is whole, and another part is publishing {out}")
            return None
        if _is_published(job, out, part):
            return None
        try:
            return _publish(job, out, folder, part)
        except (OSError, UserError):
            if _is_published(job, out, part):  # by another node's process, which has removed what this one worked on
                return None
            raise


def _publish(job: Job[C], out: Path, folder: Path, part: Part) -> tuple[Records, C]:
    """Raises UserError where a file is not what was sealed, and what completing the result raises."""
    written, read = Records(), Records()
    for number in range(1, part.of + 1):
        content = read_json(_record_of(folder, number))
        own = {name: FileRecord.model_validate(file) for name, file in content[WRITTEN].items()}
        _require_sizes(folder / FILES, own, number)
        written |= own
        read |= {name: FileRecord.model_validate(file) for name, file in content[READ].items()}
    staged = Path(tempfile.mkdtemp(prefix=RESULT, dir=folder))
    staged.chmod((folder / FILES).stat().st_mode)
    for name in written:
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(folder / FILES / name, staged / name)
    source = job.origin.facts({job.origin.folder / name: file for name, file in read.items()})
    logger.info(f"{job.name}: {part} is the last one; all {len(written)} files are there, as they were sealed")
    completed = job.complete(staged, source)
    publish.seal(staged, completed.facts, written | completed.beside)
    os.rename(staged, out)  # fails where another has published
    publish.sync(out.parent)
    shutil.rmtree(folder, ignore_errors=True)
    return written, completed


def _require_sizes(staged: Path, files: Records, number: int) -> None:
    for name, file in files.items():
        path = staged / name
        size = path.stat().st_size if path.exists() else None
        if size != file.size:
            stored = "missing" if size is None else f"{size} bytes"
            raise UserError(f"{path}: {stored}, part {number} has sealed {file.size} bytes; run part {number} again")
