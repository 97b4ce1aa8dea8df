"""What every process that this pipeline starts has in common."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1
"""linux/prctl.h: the signal that a process gets when its parent ends."""


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, however that ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
