"""Where the time of a worker goes: each lap gives the time since the last one to a kind, so that all of it adds up.

Nothing here waits for a device. Work that is given to a GPU is done later: events in its stream, read when the values
of the step have arrived, tell how the time of a step is divided.
"""

import time
from collections import defaultdict, deque
from itertools import pairwise

import torch


class Stopwatch:
    """Of a device whose work is done when a call returns (a CPU)."""

    def __init__(self) -> None:
        self.last = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)
        self._in_step = False

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

    def communicated(self, seconds: float) -> None:
        """So much of what was done since the last lap was a collective: of a step it belongs to no other kind."""
        if self._in_step:
            self._seconds["communication"] += seconds
            self.last += seconds

    def compiled(self, seconds: float) -> None:
        """So much of what was done since the last lap was compiling, and belongs to no other kind."""
        self._seconds["compile"] += seconds
        self.last += seconds

    def begin_step(self) -> None:
        """The device begins with a step."""
        self._in_step = True

    def queued(self, kind: str) -> None:
        """The work since the last call was of this kind."""
        self.lap(kind)

    def settle(self) -> None:
        """The device has done the oldest of the steps that were begun: its values have arrived."""
        self._in_step = False

    def take(self) -> dict[str, float]:
        """The seconds of each kind since the last call."""
        taken, self._seconds = self._seconds, defaultdict(float)
        return dict(taken)


class DeviceStopwatch(Stopwatch):
    """Of a GPU. While it has steps to do, what the host does meanwhile takes no time: the device's events tell. The
    first one of a kind is reached when the device has done all before, or, where it had nothing to do, when the host
    came to give it: what it stood still for is that kind's."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: deque[list[tuple[str, torch.cuda.Event]]] = deque()
        self._end: torch.cuda.Event | None = None

    def lap(self, kind: str) -> None:
        if not self._steps:
            super().lap(kind)

    def begin_step(self) -> None:
        self._steps.append([])
        self.queued("other")

    def queued(self, kind: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._steps[-1].append((kind, event))

    def settle(self) -> None:
        """Divide the time since the last step ended, or the last lap, as the device divided its own."""
        now, events = time.perf_counter(), self._steps.popleft()
        if self._end is not None:
            events.insert(0, ("", self._end))
        spans = [(kind, before.elapsed_time(after)) for (_, before), (kind, after) in pairwise(events)]
        total = sum(span for _, span in spans) or 1.0
        for kind, span in spans:
            self._seconds[kind] += (now - self.last) * span / total
        self.last = now
        self._end = events[-1][1] if self._steps else None
