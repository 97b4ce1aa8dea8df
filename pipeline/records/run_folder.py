"""The run folder: it explains itself and is all that a resume reads.

runs/NAME/
  config.yaml                     the whole config, every default written out
  report.html report.json
  data/                           what `prepare` made
  STAGE/
    stage.json                    what the stage is, its sizes, where it came from, whether it is finished
    metrics.jsonl ledger.jsonl    see ledger.py
    plan.json                     expansions only
    log.txt
    checkpoints/step-0000500/     shards, config.json, manifest.json
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError
from pipeline.records.stage_records import Records


def write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, content: str) -> None:
    """Write `content` so that a reader sees the old file or the new one, never half of it."""
    draft = path.with_name(path.name + ".draft")
    with draft.open("w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def read_json(path: Path) -> dict:
    """Read a JSON object. Raises UserError when it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read it ({error.strerror})") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); the file is damaged") from error


class StageFolder:
    """One stage of a run."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.metrics = Records(self.path / "metrics.jsonl")
        self.ledger = Records(self.path / "ledger.jsonl")
        self.checkpoints = self.path / "checkpoints"
        self.facts_file = self.path / "stage.json"

    @property
    def facts(self) -> dict:
        """The content of stage.json; empty before the stage has started."""
        return read_json(self.facts_file) if self.facts_file.exists() else {}

    @property
    def finished(self) -> bool:
        return self.facts.get("status") == "finished"

    def begin(self, **facts: object) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.facts_file, {**facts, "status": "running"})

    def finish(self, **facts: object) -> None:
        write_json(self.facts_file, {**self.facts, **facts, "status": "finished"})


@contextmanager
def exclusive(folder: Path, node: int = 0) -> Iterator[None]:
    """Hold the run folder: a second start on this node is refused, also while a worker of a dead start lives.

    The parent holds `.lock`; every worker shares `.workers` (see `share`), which must be free at the start.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot make the run folder ({error.strerror}); choose another with folder=…"
        ) from error
    suffix = f"-{node}" if node else ""
    with (folder / f".lock{suffix}").open("w") as lock, (folder / f".workers{suffix}").open("w") as workers:
        for file in (lock, workers):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(f"{folder}: another process is at work on this run; wait for it or stop it") from error
        fcntl.flock(workers, fcntl.LOCK_UN)
        yield


def share(folder: Path, node: int = 0) -> object:
    """Called by a worker: hold `.workers` until this process ends. Keep the returned file open."""
    file = (folder / f".workers{f'-{node}' if node else ''}").open("w")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file
