"""A `lemon` command that kills itself at a chosen moment of writing, as `kill -9` would."""

import os
import signal
from dataclasses import replace
from pathlib import Path

from pipeline import checkpoints
from pipeline.checkpoints import manifest, publish, reshard
from pipeline.checkpoints.serialization import byte_stream, writer_pool
from pipeline.cli import main
from tests.helpers.processes import Ended, in_a_child
from tests.helpers.waiting import wait_for

TOOL = "LEMON_TEST_TOOL"
"""Environment variable: the tool's process id."""


def run_killed(point: str, *arguments: object, said: Path) -> Ended:
    """A command in a child process that is killed at `point`.

    opened (a file is made), midway (in the middle of a file), later (in the middle of the second file of a
    part, when the first is sealed), files (all written, nothing verified), verified (before the manifest), manifest
    (written, not yet renamed), renamed (published, not yet synced), worker (one worker process only).
    """

    def work() -> int:
        os.environ[TOOL] = str(os.getpid())
        arm(point)
        return main(list(map(str, arguments)))

    return in_a_child(work, said)


def die(*_: object, **__: object) -> None:
    """End the tool, wherever in it this is called; its workers end with it."""
    os.kill(int(os.environ[TOOL]), signal.SIGKILL)
    signal.pause()


def after(function, then=die):
    def wrapped(*given, **named):
        result = function(*given, **named)
        then()
        return result

    return wrapped


class DyingMidway:
    """Content that ends the tool behind its first chunk."""

    def __init__(self, content: byte_stream.FileContent):
        self.content = content

    def chunks(self) -> byte_stream.Chunks:
        yield next(iter(self.content.chunks()))
        die()


def dying(task: writer_pool.WriteTask) -> writer_pool.WriteTask:
    return replace(task, file=replace(task.file, content=DyingMidway(task.file.content)))


class DyingLater:
    """A process's first file is written, the next one ends the tool midway, when the first has been sealed."""

    def __init__(self, run):
        self.run, self.before = run, None

    def __call__(self, task: writer_pool.WriteTask, count: writer_pool.Count):
        seals = set((task.folder.parent.parent / "sealed").rglob("*.json"))
        if self.before is None:
            self.before = seals
            return self.run(task, count)
        wait_for(lambda: set((task.folder.parent.parent / "sealed").rglob("*.json")) - self.before)
        return self.run(dying(task), count)


def opened(task: writer_pool.WriteTask, count: writer_pool.Count) -> None:
    task.path.parent.mkdir(parents=True, exist_ok=True)
    with task.path.open("wb"):
        die()


def arm(point: str) -> None:
    run, rename = writer_pool.WriteTask.run, os.replace
    if point == "opened":
        writer_pool.WriteTask.run = opened
    elif point == "midway":
        writer_pool.WriteTask.run = lambda task, count: run(dying(task), count)
    elif point == "later":
        die_later = DyingLater(run)
        writer_pool.WriteTask.run = lambda task, count: die_later(task, count)
    elif point == "worker":
        writer_pool.WriteTask.run = lambda task, count: os.kill(os.getpid(), signal.SIGKILL)
    elif point == "files":
        checkpoints.write_files = reshard.write_files = after(writer_pool.write_files)
    elif point == "verified":
        publish.publish = die
    elif point == "manifest":
        publish.sync = lambda path: die() if path.is_dir() and (path / manifest.NAME).exists() else None
    elif point == "renamed":
        publish.os.replace = lambda a, b: (rename(a, b), die()) if os.path.isdir(a) else rename(a, b)
    else:
        raise ValueError(f"no point '{point}'")
