"""How much memory a process may still take on its host."""

import os
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")


def of_host(cgroup: Path = CGROUP) -> int:
    """Bytes: what the host has free, or what the limit of the container leaves (cgroup v2)."""
    free = int(psutil.virtual_memory().available)
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):
        return free
    return min(free, max(0, int(limit) - used)) if limit.isdigit() else free


def of_rank() -> int:
    """The share of one of this host's ranks."""
    return of_host() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
