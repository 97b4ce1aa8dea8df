"""Where the time of a worker goes: each lap gives the time since the last one to a kind, so that all of it adds up.

Nothing here waits for a device. Work that is given to a GPU is done later: events in its stream, read when the loss of
the step has arrived, tell how the time of a step is divided.
"""

import time
from collections import defaultdict
from itertools import pairwise

import torch


class Stopwatch:
    """Of a device whose work is done when a call returns (a CPU)."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)

    @staticmethod
    def of(device: torch.device) -> "Stopwatch":
        return DeviceStopwatch() if device.type == "cuda" else Stopwatch()

    def begin(self, at: float) -> None:
        """Begin at a value of `time.perf_counter`."""
        self.last = at

    def lap(self, kind: str) -> None:
        """What this process has done since the last lap was of this kind."""
        now = time.perf_counter()
        self._seconds[kind] += now - self.last
        self.last = now

    def begin_step(self) -> None:
        """The device begins with a step."""

    def queued(self, kind: str) -> None:
        """The work since the last call was of this kind."""
        self.lap(kind)

    def settle(self) -> None:
        """The device has done all that was queued: the step's loss has arrived."""

    def take(self) -> dict[str, float]:
        """The seconds of each kind since the last call."""
        taken, self._seconds = self._seconds, defaultdict(float)
        return dict(taken)


class DeviceStopwatch(Stopwatch):
    """Of a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[tuple[str, torch.cuda.Event]] = []

    def begin_step(self) -> None:
        self._events = []
        self.queued("begin")

    def queued(self, kind: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._events.append((kind, event))

    def settle(self) -> None:
        """Divide the time since the last lap as the device divided its own."""
        kinds, events = zip(*self._events, strict=True)
        now, spans = time.perf_counter(), [1.0]
        if events[-1].query():  # always, for the loss has been read behind it; asking twice would wait
            spans = [before.elapsed_time(after) for before, after in pairwise(events)]
        total = sum(spans) or 1.0
        for kind, span in zip(kinds[1:], spans, strict=False):
            self._seconds[kind] += (now - self.last) * span / total
        self.last = now
        self._events = []
