"""What every process that this pipeline starts has in common."""

import ctypes
import os
import signal
import sys
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen

PR_SET_PDEATHSIG = 1
"""linux/prctl.h: the signal that a process gets when its parent ends."""
PARENT = "LEMON_PARENT_PID"
"""Environment variable of a worker: the process id of the launcher that has started it."""
OF_LAUNCHERS = (PARENT, "TORCHELASTIC_RUN_ID")
"""Set in every worker of ours, in every worker of torchrun."""
REQUESTS = (signal.SIGTERM, signal.SIGUSR1)
"""By which a scheduler asks a run to stop (training/preemption.py)."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""malloc.h: how much freed memory is kept, and from what size on each allocation is a mapping of its own."""
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
"""Those that this process may run on."""
WORKERS = CPUS + 1
"""Processes that write and hash: one more than the CPUs, for now and then one of them waits for the disk."""


def huge_pages() -> None:
    """Have torch ask for huge pages where a tensor is large: verifying a model of 2 billion parameters takes 0.7 of
    the time. To be called before torch makes its first tensor; what the user's environment says stays."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory(most: int) -> None:
    """Have the C library keep up to `most` freed bytes for the next tensor, where it would give pages back to the
    kernel, which clears them again a moment later (glibc only)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_TRIM_THRESHOLD, most)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)


def give_back_freed_memory() -> None:
    """Have the C library give the pages of freed tensors back, which it keeps where they lie between others that are
    still there (glibc only)."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def die_with_parent(parent: int | None = None) -> None:
    """Ask the kernel to end this process when its parent ends, however that ends (Linux only).

    parent: its process id. If it ended before the kernel was asked, this process ends at once; without it, torch or
    whoever else started this process has to see to that.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def die_with_launcher() -> None:
    """To be called in a worker before it imports anything large, which takes seconds in which it would outlive a
    launcher that is killed. In other processes it does nothing."""
    if "LOCAL_RANK" in os.environ and any(name in os.environ for name in OF_LAUNCHERS):
        parent = os.environ.get(PARENT, "")
        die_with_parent(int(parent) if parent.isdecimal() else None)


def be_a_helper(parent: int) -> None:
    """To be called first in a process that works for another one and outlives nothing: it ends with its parent, as
    `die_with_parent` has it, and leaves requests to stop, which schedulers send to every process of a job, to that."""
    die_with_parent(parent)
    signal.set_wakeup_fd(-1)
    for number in REQUESTS:
        signal.signal(number, signal.SIG_IGN)


class _Killed(Popen):
    def terminate(self) -> None:
        self.kill()


class _Helper(ForkProcess):
    _Popen = staticmethod(_Killed)


class Helpers(ForkContext):
    """How pools and loaders start processes that are helpers: as forks, which are ended by SIGKILL. A pool one of whose
    processes was killed, and an interpreter that ends, send SIGTERM to the others and wait for them; they pass that
    over, and may wait for ever for a lock that the killed one had."""

    Process = _Helper


def choose_accelerator() -> None:
    """Tell DeepSpeed which accelerator to take before it is imported; else it guesses, and prints that it does. torch
    counts GPUs without beginning to use them, so that processes may be forked."""
    import torch

    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
