"""Rank 0's record of where the time of a stage went.

Within a process the clock is a monotonic one; between starts it is the wall clock, to which each process fixes its own.
"""

import os
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from pipeline.records.processes import PARENT
from pipeline.records.run_folder import StageFolder
from pipeline.records.time_records import SpentRecord, StartRecord

EPOCH = time.time() - time.perf_counter()
"""Of `time.perf_counter`, in seconds since the epoch."""
STAT = Path("/proc/self/stat")
START_TIME = 19
"""Place of the start of a process in its stat file, in clock ticks since the machine's start, behind its name (proc(5):
field 22)."""
_STAGES = count()


def process_began() -> float:
    """When this process began, as `time.perf_counter` has it; where the kernel does not tell, now."""
    now = time.perf_counter()
    if not STAT.exists():
        return now
    ticks = int(STAT.read_text().rpartition(")")[2].split()[START_TIME])
    return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def stage_began(folder: StageFolder) -> float:
    """When this process began with a stage, as `time.perf_counter` has it. To be called once a stage.

    A worker of our own is there for its stage alone. Another launcher's process has prepared data and trained stages
    before; where it goes on with a stage it has done nothing else since it began."""
    alone = PARENT in os.environ or folder.times.path.exists()
    return process_began() if next(_STAGES) == 0 and alone else time.perf_counter()


def note_start(folder: StageFolder, began: float, step: int) -> None:
    """Record a start that goes on from `step` (-1: from the beginning). To be called before the step counter is written
    anew: when that was written last tells until when the start before has worked."""
    folder.times.mend()
    last, began = folder.times.last, EPOCH + began
    alive = folder.counter.path.stat().st_mtime if folder.counter.path.exists() else 0.0
    unrecorded = 0.0 if last is None else max(0.0, min(alive, began) - last)
    folder.times.append(StartRecord(step=step, began=began, unrecorded=unrecorded))


def note_spent(folder: StageFolder, step: int, seconds: Mapping[str, float], until: float) -> None:
    """Record the seconds of each kind since the last call. until: as `time.perf_counter` has it."""
    folder.times.append(SpentRecord(step=step, seconds=dict(seconds), until=EPOCH + until))
