"""Run a `lemon` command that kills itself at a chosen moment of writing, as `kill -9` would.

    python -m tests.helpers.scripts.killed POINT COMMAND …

POINT: opened (a file is made), midway (in the middle of a file), files (all written, nothing verified), verified (before the
manifest), manifest (written, not yet renamed), renamed (published, not yet synced), worker (one worker process only).
"""

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pipeline.checkpoints import manifest
from pipeline.checkpoints.serialization import byte_stream
from pipeline.cli import main

TOOL = os.getpid()


def die(*_: object, **__: object) -> None:
    """End the tool, wherever in it this is called; its workers end with it."""
    os.kill(TOOL, signal.SIGKILL)
    signal.pause()


def after(function, then=die):
    def wrapped(*given, **named):
        result = function(*given, **named)
        then()
        return result

    return wrapped


def writing(chunks: Callable[[byte_stream.File], byte_stream.Chunks]) -> None:
    """From now on every file is written with these chunks."""
    write = byte_stream.write
    byte_stream.write = lambda files, *how, **more: write(
        [replace(file, chunks=partial(chunks, file)) for file in files], *how, **more
    )


def die_when_opened(file: byte_stream.File) -> byte_stream.Chunks:
    """Chunks are asked for once the file is open."""
    die()
    yield from file.chunks()


def die_midway(file: byte_stream.File) -> byte_stream.Chunks:
    yield next(iter(file.chunks()))
    die()


def kill_worker(file: byte_stream.File) -> byte_stream.Chunks:
    os.kill(os.getpid(), signal.SIGKILL)
    yield from file.chunks()


def arm(point: str) -> None:
    rename = os.replace
    if point in CHUNKS:
        writing(CHUNKS[point])
    elif point == "files":
        byte_stream.write = after(byte_stream.write)
    elif point == "verified":
        manifest.publish = die
    elif point == "manifest":
        manifest.sync = lambda path: die() if path.is_dir() and (path / manifest.NAME).exists() else None
    elif point == "renamed":
        os.replace = lambda old, new: die(rename(old, new)) if os.path.isdir(old) else rename(old, new)
    else:
        raise SystemExit(f"no point '{point}'")


CHUNKS = {"opened": die_when_opened, "midway": die_midway, "worker": kill_worker}


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
