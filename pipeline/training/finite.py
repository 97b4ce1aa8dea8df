"""Is all that a checkpoint would hold a finite number? Weights and optimizer state, a share on each rank."""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import Tensor


def all_finite(engine: DeepSpeedEngine, device: torch.device) -> bool:
    """Whether every weight and every number of the optimizer's state is finite, on all ranks. One pass over the memory;
    a collective call."""
    bad = torch.zeros((), device=device)
    for tensor in _held(engine):
        if tensor.numel():
            ends = torch.stack(torch.aminmax(tensor.detach()))  # NaN where there is one
            bad += (~ends.isfinite().all()).to(bad)
    dist.all_reduce(bad)
    return bad.item() == 0


def _held(engine: DeepSpeedEngine) -> Iterator[Tensor]:
    """This rank's weights (under ZeRO-3 its partitions), master weights and optimizer state."""
    for parameter in engine.module.parameters():
        yield getattr(parameter, "ds_tensor", parameter)
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    for master, state in inner.state.items():
        yield master
        yield from (value for value in state.values() if isinstance(value, Tensor) and value.is_floating_point())
