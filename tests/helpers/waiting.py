"""Waiting for something that another process does."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def patience(seconds: float) -> float:
    """Seconds for what takes `seconds` on an idle machine: more where others compute too."""
    return seconds * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def wait_for(condition: Callable[[], Value], seconds: float = 120) -> Value:
    """The condition's value once it is true. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return value
