"""The run folder: it explains itself and is all that a resume reads.

runs/NAME/
  config.yaml                     the whole config, every default written out
  report.html report.json
  data/                           what `prepare` made
  STAGE/
    stage.json                    what the stage is, its sizes, where it came from, whether it is finished
    metrics.jsonl ledger.jsonl    see stage_records.py
    events.jsonl recent.jsonl     see event_records.py
    times.jsonl                   see time_records.py
    last-step                     while it trains: the last step that it has finished, see step_counter.py
    plan.json                     expansions only
    hangs/step-0000120/           what each rank was doing where training stood still
    log.txt
    checkpoints/step-0000500/     shards, config.json, manifest.json
    resharded/                    until it has saved: its checkpoint for the ranks that it goes on with
"""

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import UserError, writing_to
from pipeline.records.event_records import Events, Recent
from pipeline.records.locks import lock
from pipeline.records.stage_facts import StageFacts, parse
from pipeline.records.stage_records import Ledger, Metrics
from pipeline.records.step_counter import StepCounter
from pipeline.records.time_records import Times

KINDS = {list: "list", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}
"""What JSON calls that which is no object."""
LFS = b"version https://git-lfs.github.com/spec/"
"""How the pointer begins that lies in the place of a file which Git LFS has not fetched."""
POINTER = "{}: is a pointer of Git LFS, the file itself was not fetched; run 'git lfs pull' in its folder"


def step_of(checkpoint: Path) -> int | None:
    """The step in the name of a checkpoint's folder, however many digits it has and whatever it was resharded to since
    (`step-0000024-zero1x4`, `step-0000024-zero1x4-zero2x4`); None for another name, such as that of a copy."""
    match = re.fullmatch(r"step-(\d+)(-zero[1-3]x\d+)*", checkpoint.name)
    return int(match[1]) if match else None


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write `content` so that a reader sees the old file or the new one, never half of it."""
    draft = path.with_name(path.name + ".draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        error.filename = error.filename or str(path)  # a disk that is full names none
        raise


def is_pointer(path: Path) -> bool:
    """Whether Git LFS has left a pointer in the place of a file."""
    with path.open("rb") as file:
        return file.read(len(LFS)) == LFS


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises UserError when it is missing, broken, or anything else."""
    try:
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:  # also of bytes that are no text, and of too long a number
        if is_pointer(path):
            raise UserError(POINTER.format(path)) from error
        raise UserError(f"{path}: not valid JSON ({error}); the file is damaged or no JSON file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a JSON {KINDS[type(content)]}, not an object of keys; the file is damaged")
    return content


class StageFolder:
    """One stage of a run."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.metrics = Metrics(self.path / "metrics.jsonl")
        self.ledger = Ledger(self.path / "ledger.jsonl")
        self.events = Events(self.path / "events.jsonl")
        self.recent = Recent(self.path / "recent.jsonl")
        self.times = Times(self.path / "times.jsonl")
        self.counter = StepCounter(self.path / "last-step")
        self.checkpoints = self.path / "checkpoints"
        self.facts_file = self.path / "stage.json"

    @property
    def facts(self) -> StageFacts | None:
        """The content of stage.json, None before the stage has started. Raises UserError."""
        return parse(self.facts_file, read_json(self.facts_file)) if self.facts_file.exists() else None

    @property
    def finished(self) -> bool:
        facts = self.facts
        return facts is not None and facts.status == "finished"

    def begin(self, facts: StageFacts) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._write(facts, "running")

    def finish(self, facts: StageFacts) -> None:
        self._write(facts, "finished")

    def _write(self, facts: StageFacts, status: str) -> None:
        write_json(self.facts_file, facts.model_copy(update={"status": status}).model_dump(mode="json"))


@contextmanager
def exclusive(folder: Path, node: int = 0) -> Iterator[None]:
    """Lock the run folder on this node: a second start is refused, also while a worker of a killed start is alive.

    The parent locks `.lock`; every worker shares a lock on `.workers` (see `share`), which must be free at the start.
    """
    with writing_to(folder, "choose another run folder with folder=…"):
        folder.mkdir(parents=True, exist_ok=True)
        locks = [_lock_file(folder, name, node).open("w") for name in (".lock", ".workers")]
    with locks[0] as parent, locks[1] as workers:
        for file in (parent, workers):
            _lock(file, folder)
        fcntl.flock(workers, fcntl.LOCK_UN)
        yield


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Lock `.lock` alone, for rank 0 of workers that another launcher has started: its siblings share `.workers`
    already. Raises UserError where anybody else holds it."""
    with _lock_file(folder, ".lock", 0).open("w") as file:
        _lock(file, folder)
        yield


def _lock(file: TextIO, folder: Path) -> None:
    """Raises UserError for a lock that is held for longer than a process that was killed takes to end."""
    if not lock(file):
        raise UserError(f"{folder}: another process is at work on this run; wait for it or stop it")


def share(folder: Path, node: int = 0) -> TextIO:
    """Called by a worker: lock `.workers`, together with the others, until this process ends. Keep the returned file
    open."""
    file = _lock_file(folder, ".workers", node).open("w")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file


def _lock_file(folder: Path, name: str, node: int) -> Path:
    return folder / (f"{name}-{node}" if node else name)
