"""Run a `lemon` command that kills itself at a chosen moment of writing, as `kill -9` would.

    killed.py POINT COMMAND …

POINT: opened (a file is made), midway (in the middle of a file), files (all written, nothing verified), verified (before the
manifest), manifest (written, not yet renamed), renamed (published, not yet synced), worker (one worker process only).
"""

import os
import signal
import sys

from pipeline.__main__ import main
from pipeline.checkpoints import manifest, stream


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


def dying_midway(file: stream.File) -> stream.File:
    def chunks():
        yield next(iter(file.chunks()))
        die()

    return stream.File(file.name, file.size, chunks)


def arm(point: str) -> None:
    write, one, replace = stream.write, stream._one, manifest.os.replace
    if point == "opened":
        stream._one = lambda file, folder, count: ((folder / file.name).parent.mkdir(parents=True, exist_ok=True), (folder / file.name).open("wb"), die())
    elif point == "midway":
        stream._one = lambda file, folder, count: one(dying_midway(file), folder, count)
    elif point == "worker":
        stream._one = lambda file, folder, count: os.kill(os.getpid(), signal.SIGKILL)
    elif point == "files":
        stream.write = after(write)
    elif point == "verified":
        manifest.publish = die
    elif point == "manifest":
        manifest.sync = lambda path: die() if path.is_dir() and (path / manifest.NAME).exists() else None
    elif point == "renamed":
        manifest.os = type("os", (), {**vars(os), "replace": staticmethod(lambda a, b: (replace(a, b), die()) if os.path.isdir(a) else replace(a, b))})
    else:
        raise SystemExit(f"no point '{point}'")


if __name__ == "__main__":
    arm(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
