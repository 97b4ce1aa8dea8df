"""Where the time of a worker goes: each lap gives the time since the last one to a kind, so that all of it adds up.

Nothing here waits for a device. Work that is given to a GPU is done later: events in its stream, read when the values
of the step have arrived, tell how the time of a step is divided.
"""

import time
from collections import defaultdict, deque
from dataclasses import dataclass, field
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


@dataclass
class _QueuedStep:
    """data: seconds for which the host has waited for its samples; events: where in the stream a kind of work ends, the
    first one where the step begins."""

    data: float
    events: list[tuple[str, torch.cuda.Event]] = field(default_factory=list)


class DeviceStopwatch(Stopwatch):
    """Of a GPU. While it has steps to do, what the host does meanwhile takes no time: the device's events tell."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: deque[_QueuedStep] = deque()
        self._end: torch.cuda.Event | None = None
        self._host, self._data = self.last, 0.0

    def lap(self, kind: str) -> None:
        now = time.perf_counter()
        if kind == "data":
            self._data = now - self._host
        if not self._steps:
            super().lap(kind)
        self._host = now

    def begin_step(self) -> None:
        self._steps.append(_QueuedStep(self._data))
        self._data = 0.0
        self.queued("begin")

    def queued(self, kind: str) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._steps[-1].events.append((kind, event))
        self._host = time.perf_counter()

    def settle(self) -> None:
        """Divide the time since the last step ended, or the last lap, as the device divided its own."""
        step, now = self._steps.popleft(), time.perf_counter()
        spans = self._idle(step)
        spans += [(kind, before.elapsed_time(after)) for (_, before), (kind, after) in pairwise(step.events)]
        total = sum(span for _, span in spans) or 1.0
        for kind, span in spans:
            self._seconds[kind] += (now - self.last) * span / total
        self.last = self._host = now
        self._end = step.events[-1][1] if self._steps else None

    def _idle(self, step: _QueuedStep) -> list[tuple[str, float]]:
        """Milliseconds for which the device had nothing to do before a step: for want of samples, as long as the host
        waited for them."""
        if self._end is None:
            return []
        idle = self._end.elapsed_time(step.events[0][1])
        waited = min(idle, 1000 * step.data)
        return [("data", waited), ("other", idle - waited)]
