"""The process group of all workers: join it, leave it, and what rank 0 alone finds out for everyone."""

import datetime
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import deepspeed
import deepspeed.ops
import torch
import torch.distributed as dist

from pipeline.checkpoints.layouts.deepspeed_pickles import open_safely_from_here_on
from pipeline.config.hang import HangChoice
from pipeline.durations import seconds
from pipeline.errors import FaultError, UserError, one_line
from pipeline.training import interfaces, timeouts

T = TypeVar("T")
MEANT = (r"barrier\(\): using the device under current context", "TensorFloat32 tensor cores for float32 matrix")
"""Beginnings of torch's warnings of what is as it should be: DeepSpeed binds no device to the group of a rank that is
alone, and products in fp32 are of fp32 where nothing else was asked for."""
OLDEST_DEEPSPEED = (0, 19, 8)
"""Earlier versions give wrong gradients silently (0.17.6 to 0.18.2 with ZeRO-2, 0.18.6 to 0.18.9 with ZeRO-1 in bf16),
and the repairs of ours were tested with this one."""


@dataclass(frozen=True)
class World:
    """This process among all workers."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0


def join(hang: HangChoice = HangChoice()) -> World:
    """Join the process group that the launcher's environment describes; from here on this worker executes nothing that
    a file holds. Raises UserError for an old DeepSpeed, and FaultError where not all come."""
    if tuple(int(part) for part in deepspeed.__version__.split("+")[0].split(".")[:3]) < OLDEST_DEEPSPEED:
        raise UserError(
            f"DeepSpeed {deepspeed.__version__} is too old, its gradients cannot be trusted; install at least 0.19.8"
        )
    open_safely_from_here_on()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    cuda = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    if cuda:
        torch.cuda.set_device(_gpu())
        for warning in MEANT:
            warnings.filterwarnings("ignore", message=warning)
    else:
        # On the CPU accelerator DeepSpeed compiles this op at start; training never uses it, and a stale lock hangs it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    interfaces.choose(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    _meet("nccl" if cuda else "gloo", hang)
    return World(
        dist.get_rank(),
        dist.get_world_size(),
        torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"),
    )


def _meet(backend: str, hang: HangChoice) -> None:
    """Make the process group of all workers. Raises FaultError when it takes longer than anything should."""
    try:
        deepspeed.init_distributed(backend, timeout=datetime.timedelta(seconds=seconds(hang.first)), verbose=False)
    except dist.DistError as error:
        raise FaultError(
            f"rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} has not met all others within {hang.first} "
            f"({one_line(error)}); look for those that did not start, and run the command again"
        ) from error
    timeouts.set_on_every_group(datetime.timedelta(seconds=seconds(hang.collective)))


def _gpu() -> int:
    """This worker's GPU among those that it sees: that of its local rank, or the only one, where the launcher shows
    each its own (srun --gpus-per-task); DeepSpeed reads LOCAL_RANK too. Raises UserError where there is none."""
    local_rank, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if count == 1 and local_rank > 0:
        os.environ |= {name: "0" for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK") if name in os.environ}
        return 0
    if local_rank >= count:
        raise UserError(
            f"LOCAL_RANK={local_rank}: this process sees {count} GPU(s); start at most that many on a node, or set "
            "DS_ACCELERATOR=cpu"
        )
    return local_rank


def leave(code: int = 0) -> NoReturn:
    """End this worker with an exit code, together with the others and without Python's teardown: now and then gloo's
    threads are still joinable there and abort the process (SIGABRT, seen with ZeRO-3 in about 1 run of 10), although
    all is done."""
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def of_rank_0(find: Callable[[], T]) -> T:
    """What `find` gives on rank 0, for every rank; to be called by all. It may open a file of every rank, which all
    ranks together could not. Raises the UserError that rank 0 has raised."""
    found: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            found[0] = find()
        except UserError as error:
            found[1] = str(error)
    dist.broadcast_object_list(found)
    result, refusal = found
    if refusal is not None:
        raise UserError(refusal)
    return cast(T, result)


def checkpoint_of_rank_0(newest: Path | None) -> Path | None:
    """Rank 0's newest checkpoint, for every rank: a shared file system may show them different ones. Raises
    UserError."""
    checkpoint = [newest]
    dist.broadcast_object_list(checkpoint)
    if checkpoint[0] is not None and not checkpoint[0].is_dir():
        raise UserError(
            f"{checkpoint[0]}: rank {dist.get_rank()} does not see the checkpoint that rank 0 resumes from; "
            "is the folder shared by all nodes?"
        )
    return checkpoint[0]
