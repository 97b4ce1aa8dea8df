"""Ending the workers of a launch that do not end when one of them has failed: a process that was stopped (SIGSTOP)
leaves SIGTERM to later, and torch's agent waits half a minute for it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from pipeline.training.preemption import live_workers

LOOK = 0.2
"""Seconds between two looks at the workers."""
GRACE = 3.0
"""Seconds that they have: to hear the agent's SIGTERM, to write their stacks."""


class Survivors:
    """killed: process ids of those that were ended here, whose SIGKILL is no cause of anything."""

    def __init__(self) -> None:
        self.killed: set[int] = set()
        self._seen: set[int] = set()

    def look(self, alive: set[int]) -> bool:
        """Whether one that was seen before has ended, and others have not. alive: process ids of workers."""
        self._seen |= alive
        return bool(alive) and alive != self._seen

    def kill(self, process: psutil.Process) -> None:
        self.killed.add(process.pid)
        with suppress(psutil.NoSuchProcess):
            process.kill()

    def watch(self, ended: threading.Event) -> None:
        """To be run in a thread."""
        while not ended.wait(LOOK):
            if self.look({process.pid for process in live_workers()}) and not ended.wait(GRACE):
                for process in live_workers():
                    self.kill(process)


@contextmanager
def ended() -> Iterator[Survivors]:
    """End survivors of this process's workers meanwhile."""
    survivors, over = Survivors(), threading.Event()
    thread = threading.Thread(target=survivors.watch, args=(over,), daemon=True)
    thread.start()
    try:
        yield survivors
    finally:
        over.set()
        thread.join()
