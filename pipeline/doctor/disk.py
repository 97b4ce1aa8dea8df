"""The disk of the run folder: its speed, and whether its clock is ours."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.checkpoints.serialization.amounts import amount
from pipeline.doctor.finding import Finding, graded

CHUNK, CHUNKS = 8 << 20, 16
"""Bytes that are written and read: 128 MiB, with numbers that no file system can compress."""
LEAST_FREE = 1 << 30
SLOW = 50.0
"""MB/s: at less, the 1.3 GB of BERT-base's training state take half a minute."""
SKEW = 2.0
"""Seconds between the clock of the file system and ours; files on FAT have times of 2 s."""


def disk(folder: Path) -> Iterator[Finding]:
    """What a run in `folder` would find; nothing is left there."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    yield graded("disk", f"{amount(free)} free at {there}", "make room or choose --folder", bad=free < LEAST_FREE)
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=there) as place:
            yield clock(Path(place))
            if free >= LEAST_FREE:
                yield from speed(Path(place) / "numbers")
    except OSError as error:
        yield graded("disk", f"{there}: cannot be written ({error.strerror})", "choose another --folder", bad=True)


def clock(place: Path) -> Finding:
    """Waiting nodes and resumed runs compare no clocks; people and schedulers who read the files do."""
    file = place / "now"
    before = time.time()
    file.touch()
    skew = file.stat().st_mtime - before
    text = f"the file system's is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
    return graded("clock", text, "synchronise both (chrony, ntpd)", note=abs(skew) > SKEW)


def speed(file: Path) -> Iterator[Finding]:
    """Writing with fsync, and reading from the disk itself."""
    chunk, begun = os.urandom(CHUNK), time.perf_counter()
    with file.open("wb") as output:
        for _ in range(CHUNKS):
            output.write(chunk)
        output.flush()
        os.fsync(output.fileno())
        written = time.perf_counter() - begun
        if hasattr(os, "posix_fadvise"):  # what the page cache holds tells nothing of the disk
            os.posix_fadvise(output.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    begun = time.perf_counter()
    with file.open("rb", buffering=0) as source:
        while source.read(CHUNK):
            pass
    read = time.perf_counter() - begun
    for name, seconds in (("disk, writing", written), ("disk, reading", read)):
        rate = CHUNK * CHUNKS / seconds / 1e6
        yield graded(name, f"{rate:,.0f} MB/s", "choose a faster disk with --folder", note=rate < SLOW)
