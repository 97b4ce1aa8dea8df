"""Versions, devices and limits of this machine."""

import os
import resource
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from pipeline.checkpoints.serialization.amounts import amount
from pipeline.doctor.finding import Finding, graded
from pipeline.records.versions import LIBRARIES, installed

PACKAGE = "lemon-pipeline"
SHARED_MEMORY = Path("/dev/shm")
LEAST_SHARED, ENOUGH_SHARED = 32 << 20, 1 << 30
"""Bytes of shared memory: without the first loader processes fail, below the second many of them may (docker gives 64
MiB)."""
LEAST_FILES, ENOUGH_FILES = 256, 1024
"""Open files of a process: a rank opens the shards that it reads, sockets to the others, and pipes to its loaders."""


def machine() -> Iterator[Finding]:
    """All that this process can see by itself."""
    yield from versions(installed(), supported())
    yield devices()
    yield shared_memory(shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else 0)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def supported() -> dict[str, SpecifierSet]:
    """The versions that the package asks for, by name, as it was installed; empty where it was not."""
    try:
        asked = [Requirement(text) for text in requires(PACKAGE) or ()]
        python = metadata(PACKAGE)["Requires-Python"]
    except PackageNotFoundError:
        return {}
    ranges = {each.name: each.specifier for each in asked if each.name in LIBRARIES and not each.marker}
    return {"python": SpecifierSet(python), **ranges}


def versions(found: dict[str, str], ranges: dict[str, SpecifierSet]) -> Iterator[Finding]:
    """Each against its range."""
    for name, version in found.items():
        asked = ranges.get(name)
        fits = asked is None or asked.contains(version, prereleases=True)
        text = version if asked is None else f"{version} ({', '.join(sorted(map(str, asked)))})"
        yield graded(name, text, f"install one in that range (pip install '{name}{asked}')", bad=not fits)


def devices() -> Finding:
    if not torch.cuda.is_available() or os.environ.get("DS_ACCELERATOR") == "cpu":
        return Finding(subject="devices", verdict="ok", text=f"no GPU, {len(os.sched_getaffinity(0))} CPUs")
    count = torch.cuda.device_count()
    each = [torch.cuda.get_device_properties(number) for number in range(count)]
    listed = ", ".join(f"{one.name} with {amount(one.total_memory)}" for one in each)
    return graded("devices", listed, "use equal ones: the slowest decides", note=len({one.name for one in each}) > 1)


def shared_memory(free: int) -> Finding:
    way_out = "enlarge it (docker: --shm-size, Kubernetes: an emptyDir in memory at /dev/shm), or data.workers=0"
    return graded("shared memory", f"{amount(free)} free", way_out, bad=free < LEAST_SHARED, note=free < ENOUGH_SHARED)


def open_files(limit: int) -> Finding:
    """limit: the soft one; -1 is none."""
    if limit == resource.RLIM_INFINITY:
        return Finding(subject="open files", verdict="ok", text="no limit")
    few, some = limit < LEAST_FILES, limit < ENOUGH_FILES
    return graded("open files", f"at most {limit:,}", "raise it (ulimit -n 4096)", bad=few, note=some)
