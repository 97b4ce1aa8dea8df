"""What node 0 tells the nodes that wait for it, in a file of the run folder, which all of them share. Where another
launcher has started a process for each rank, rank 0 tells the other ranks in the same way.

While node 0 is at work it counts up in that file, and when it stops it says why. A waiting node sees the file change or
not; no clock is compared with another node's. A stop that it finds there when it starts may be of an earlier launch,
which a launch that begins replaces, or of this one, where node 0 was quicker: so it counts after a while.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from uuid import uuid4

from pydantic import ValidationError

from pipeline.errors import Preempted, UserError
from pipeline.records import run_folder
from pipeline.records.strict import Strict
from pipeline.training.environment import Launched
from pipeline.training.launcher import Nodes, Start
from pipeline.training.preemption import StopRequest

BEAT = 10.0
"""Seconds between two signs of life of node 0."""
SILENCE = 600.0
"""Seconds without one after which node 0 counts as gone. Nodes that are started one after the other, and file systems
that show an old file for a while, must fit in."""
RESTART = 60.0
"""Seconds in which node 0 must replace a stop that a waiting node found when it started."""
POLL = 1.0
"""Seconds between two looks at the file."""

logger = logging.getLogger(__name__)


OnFirst = Callable[[Callable[[], object], Callable[[], bool]], object]
"""Has node or rank 0 do offline work (the first argument) while the others wait until it is done (the second), on
files: no collective is open meanwhile. Raises UserError there when the first one fails."""


class Status(Strict):
    """launch: another one for every start of node 0. beat: goes up while it is at work. stopped: why it is not.
    preempted: whether it was asked to stop."""

    launch: str
    beat: int = 0
    stopped: str | None = None
    preempted: bool = False


@contextmanager
def dividing_work(run: Path, start: Start) -> Iterator[OnFirst]:
    """How a command that was started as `start` says has offline work done once. Rank 0 of another launcher's processes
    stops in it at once when it is asked to, as a command of our own does, and the others with it."""
    if not start.first:
        watch = Watch(run, start.kind)
        yield lambda action, done: watch.wait(done)
        return
    stoppable = StopRequest.of_this_process().at_once if isinstance(start, Launched) else nullcontext

    def on_first(action: Callable[[], object], done: Callable[[], bool]) -> None:
        with stoppable():
            action()

    with nullcontext() if start.alone else at_work(run):
        yield on_first


def status_file(run: Path) -> Path:
    return run / ".node-0"


@contextmanager
def at_work(run: Path) -> Iterator[None]:
    """Give signs of life on node 0 meanwhile, and leave the reason of any failure; nothing is left of a success."""
    status, ended = Status(launch=uuid4().hex), threading.Event()
    _write(run, status)
    beats = threading.Thread(target=_beat, args=(run, status, ended), daemon=True)
    beats.start()
    ending: dict[str, object] = {}
    try:
        yield
    except BaseException as error:
        ending = {"stopped": _reason(error), "preempted": isinstance(error, Preempted)}
        raise
    finally:
        ended.set()
        beats.join()
        if ending:
            _write(run, status.model_copy(update=ending))
        else:
            status_file(run).unlink(missing_ok=True)


def _beat(run: Path, status: Status, ended: threading.Event) -> None:
    beat = 0
    while not ended.wait(BEAT):
        beat += 1
        _write(run, status.model_copy(update={"beat": beat}))


def _write(run: Path, status: Status) -> None:
    with suppress(OSError):  # a full disk is told by what node 0 is at
        run_folder.write_text(status_file(run), status.model_dump_json())


def _reason(error: BaseException) -> str:
    """One line; a bug's kind goes with it."""
    if isinstance(error, KeyboardInterrupt):
        return "it was interrupted"
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | Preempted) else f"{type(error).__name__}: {text}"


class Watch:
    """Node 0, as another node sees it. To be made when that node starts: a stop that is there already may be old. kind:
    what has the number 0, a node or a rank."""

    def __init__(self, run: Path, kind: str = Nodes.kind):
        self.run, self.kind, self.found = run, kind, _read(run)

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait for what node 0 does. Raises UserError when it has stopped, or gives no sign of life for `SILENCE`;
        Preempted where it was asked to."""
        before = f", which stopped before: {self.found.stopped}" if self.found and self.found.stopped else ""
        logger.info(f"waiting for {self.kind} 0{before}")
        last, heard = self.found, time.monotonic()
        while not done():
            status = _read(self.run)
            if status != last:
                last, heard = status, time.monotonic()
            silence = time.monotonic() - heard
            if status and status.stopped is not None and (status != self.found or silence > RESTART):
                raise (Preempted if status.preempted else UserError)(f"{self.kind} 0 stopped: {status.stopped}")
            if silence > SILENCE:
                raise UserError(
                    f"{self.kind} 0 gave no sign of life for {SILENCE / 60:.0f} minutes: it was killed, or not "
                    f"started; start all {self.kind}s again"
                )
            time.sleep(POLL)


def _read(run: Path) -> Status | None:
    """None where there is none, or it cannot be read at this moment."""
    try:
        return Status.model_validate_json(status_file(run).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None
