"""The time-out of every process group: the net under training/hangs, in one place.

DeepSpeed makes groups of its own and leaves them torch's default, which is 30 minutes for gloo and 10 for NCCL.
"""

from datetime import timedelta

import torch
from torch.distributed import ProcessGroup, distributed_c10d


def groups() -> list[ProcessGroup]:
    """All that this process is in."""
    return list(distributed_c10d._world.pg_map)


def of(group: ProcessGroup) -> timedelta:
    """The time-out of a group."""
    device = "cuda" if torch.device("cuda") in group._device_types else "cpu"
    timeout: timedelta = group._get_backend(torch.device(device)).options._timeout
    return timeout


def set_on_every_group(timeout: timedelta) -> None:
    """To be called when groups have been made. (torch has no public function for it.)"""
    for group in groups():
        distributed_c10d._set_pg_timeout(timeout, group)


def set_as_of_all_ranks() -> None:
    """Give every group the time-out of the one that all ranks are in."""
    set_on_every_group(of(distributed_c10d._get_default_group()))
