"""The most memory that this process has taken so far."""

from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of a GPU what torch had allocated at most, of a host what was resident at most since the process began its
    program (VmHWM; the peak that `getrusage` tells is one that launchers hand down). None where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
