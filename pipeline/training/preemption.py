"""Stopping on request: a scheduler's SIGTERM or SIGUSR1, sent to the launcher or to any worker, or the end of the time
that the config gives the run (`max_time`).

The ranks agree at the end of a step, a checkpoint is published, and the command ends with exit code 85: start it again
to go on. A second signal ends it at once.
"""

import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import FrameType
from typing import Any

import psutil

from pipeline.errors import Preempted
from pipeline.records.processes import PARENT, REQUESTS

REQUEUE = 85
"""The exit code of a command that was asked to stop, and of its workers."""
ONE_REQUEST = 2.0
"""Seconds within which signals are one request: schedulers signal every process of a job, and launchers forward."""
JOINING = 20.0
"""Seconds that a worker which is asked to stop waits for others that do not come: they were asked too, and have
ended."""
DEADLINE = "LEMON_DEADLINE"
"""Environment variable: the time at which a run is to stop, in seconds since the epoch; workers inherit it."""
TORCHRUN = "TORCHELASTIC_RUN_ID"
"""Environment variable of a worker that torchrun has started; PARENT is that of ours."""


def set_deadline(seconds: float | None) -> None:
    """Give this process, and the workers that it starts, so much time from now on, unless that was done before."""
    if seconds is not None:
        os.environ.setdefault(DEADLINE, str(time.time() + seconds))


def time_is_up() -> bool:
    return time.time() >= float(os.environ.get(DEADLINE, "inf"))


class StopRequest:
    """What a worker was asked. A thread hears it, for the main thread may wait in a collective."""

    def __init__(self) -> None:
        self._asked: tuple[str, float] | None = None
        self._signal, self._at_once, self._joining = 0, False, False

    @classmethod
    @cache
    def of_this_process(cls) -> "StopRequest":
        """The one that hears this process's signals, from the first call on."""
        request = cls()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in REQUESTS:
            signal.signal(number, request._interrupt)
        threading.Thread(target=request._listen, args=(reading,), daemon=True).start()
        return request

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Around what rank 0 does while the others wait for it: a signal raises Preempted in it, also one that came
        before. In the main thread."""
        self._at_once = True
        try:
            if self._signal:
                self._interrupt(self._signal)
            yield
        finally:
            self._at_once = False

    @contextmanager
    def joining(self) -> Iterator[None]:
        """Around what all ranks come to: one that is asked goes on to the step where they agree, unless another, which
        was asked too, has ended before it came."""
        self._joining = True
        try:
            if self._asked:
                self._wait_for_all()
            yield
        finally:
            self._joining = False

    def _wait_for_all(self) -> None:
        timer = threading.Timer(JOINING, self._leave)
        timer.daemon = True
        timer.start()

    def _leave(self) -> None:
        if self._joining:
            os._exit(REQUEUE)

    def _interrupt(self, number: int, frame: FrameType | None = None) -> None:
        self._signal = number
        if self._at_once:
            self._at_once = False
            raise Preempted(f"stopped on {signal.Signals(number).name}")

    def _listen(self, reading: int) -> None:
        while True:
            for number in os.read(reading, 64):
                if number in REQUESTS:
                    self.hear(number)

    def hear(self, number: int) -> None:
        """Note a signal. End this process where it is a second request, or how torch's agent ends the workers that are
        left when one has failed."""
        again = self._asked is not None and time.monotonic() - self._asked[1] > ONE_REQUEST
        if again or (number == signal.SIGTERM and _one_of_us_has_failed()):
            os._exit(128 + number)
        self._asked = self._asked or (signal.Signals(number).name, time.monotonic())
        if self._joining:
            self._wait_for_all()

    @property
    def asked(self) -> bool:
        """Whether somebody has asked, not the clock."""
        return self._asked is not None

    @property
    def reason(self) -> str | None:
        """Why to stop, in words; None: go on."""
        if self._asked:
            return self._asked[0]
        return "max_time" if time_is_up() else None


def _one_of_us_has_failed() -> bool:
    """Whether the agent that started this worker has fewer workers than it started."""
    if not {PARENT, TORCHRUN} & set(os.environ):
        return False
    return len(live_workers(os.getppid())) < int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def live_workers(launcher: int | None = None) -> list[Any]:
    """The workers that a process has started, by default this one, and that have not ended."""
    return [each for each in psutil.Process(launcher).children() if _is_a_worker(each)]


def _is_a_worker(process: Any) -> bool:
    """Whether a child of torch's agent is alive and a worker: those have a session of their own."""
    try:
        ended = bool(process.status() == psutil.STATUS_ZOMBIE)
        return not ended and os.getsid(process.pid) == process.pid
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


class Forwarding:
    """What a launcher does with such a signal: while workers run it goes on to them, else the command stops here."""

    def __init__(self) -> None:
        self.workers_run = False
        self.asked: float | None = None

    def stop_if_asked(self) -> None:
        """To be called before workers start: those of before may have ended without hearing it. Raises Preempted."""
        if self.asked is not None:
            raise Preempted("stopped on request")

    def hear(self, number: int, frame: FrameType | None = None) -> None:
        """Raises Preempted where there are no workers; a second request ends workers at once, and KeyboardInterrupt."""
        again = self.asked is not None and time.monotonic() - self.asked > ONE_REQUEST
        self.asked = self.asked or time.monotonic()
        workers = psutil.Process().children() if self.workers_run else []
        for worker in workers:
            _send(worker, signal.SIGKILL if again else number)
        if again:
            raise KeyboardInterrupt
        if not workers:
            raise Preempted(f"stopped on {signal.Signals(number).name}")


def _send(process: Any, number: int) -> None:
    with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
        process.send_signal(number)


def stopped(exit_codes: Iterable[int]) -> bool:
    """Whether workers with these exit codes have stopped on request: in good order, or, where it came before they could
    hear it, by the signal itself."""
    early = {-number for number in REQUESTS} if FORWARDING.asked is not None else set()
    return any(code == REQUEUE or code in early for code in exit_codes)


FORWARDING = Forwarding()
"""Of this process."""


@contextmanager
def heard() -> Iterator[None]:
    """Hear signals as a launcher does."""
    before = {number: signal.signal(number, FORWARDING.hear) for number in REQUESTS}
    try:
        yield
    finally:
        FORWARDING.asked = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def forwarded() -> Iterator[None]:
    """Around what starts workers and waits for them."""
    FORWARDING.workers_run = True
    try:
        yield
    finally:
        FORWARDING.workers_run = False
