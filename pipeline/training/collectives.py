"""The time that a worker stands in DeepSpeed's collectives, told to its stopwatch.

ZeRO reduces gradients in hooks of the backward pass and gathers weights in the optimizer's step, so no call of ours
encloses its communication. On CPUs a collective, or the wait for one, takes the time of the process that calls it; on
GPUs it overlaps with what the device computes, and a trace tells (`lemon profile --trace`).
"""

import threading
import time
from collections.abc import Callable
from typing import Any

from deepspeed import comm

COLLECTIVES = (
    *("all_reduce", "reduce", "broadcast", "barrier", "all_to_all_single", "all_reduce_coalesced"),
    *("reduce_scatter", "reduce_scatter_tensor", "all_gather", "all_gather_into_tensor", "all_gather_coalesced"),
)
"""Of DeepSpeed's backend, by their names there."""
Tell = Callable[[float], None]
"""What takes seconds of the main thread."""


def timed(tell: Tell) -> Callable[[], None]:
    """Have every collective that DeepSpeed's modules call, and every wait for one, tell its seconds. Returns what ends
    it."""
    backend = comm.comm.cdb
    for name in COLLECTIVES:
        setattr(backend, name, _timed(getattr(backend, name), tell))

    def end() -> None:
        for name in COLLECTIVES:
            vars(backend).pop(name, None)

    return end


def _timed(collective: Callable[..., Any], tell: Tell) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        work = _measured(collective, tell, *arguments, **named)
        return TimedWork(work, tell) if hasattr(work, "wait") else work

    return call


def _measured(function: Callable[..., Any], tell: Tell, *arguments: Any, **named: Any) -> Any:
    begun = time.perf_counter()
    result = function(*arguments, **named)
    if threading.current_thread() is threading.main_thread():
        tell(time.perf_counter() - begun)
    return result


class TimedWork:
    """A collective under way, as torch's `Work`."""

    def __init__(self, work: Any, tell: Tell):
        self._work, self._tell = work, tell

    def wait(self, *arguments: Any, **named: Any) -> Any:
        return _measured(self._work.wait, self._tell, *arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)
