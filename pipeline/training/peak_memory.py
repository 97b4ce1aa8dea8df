"""The most memory that this process has taken so far."""

import resource

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes: of a GPU what torch had allocated at most, of a host what was resident at most (ru_maxrss, in KiB)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
