"""Where DeepSpeed's optimizers keep the numbers of a parameter that they update: under ZeRO a piece of a flat tensor,
which begins and ends anywhere in the parameter; without it a tensor of the parameter's own."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import Tensor, nn


@dataclass(frozen=True)
class Fragment:
    """What this rank updates of a parameter. held: the tensor that the optimizer knows; start: where in it; begin:
    which entry of the parameter, counted through its rows, lies there; length: how many."""

    held: Tensor
    start: int
    begin: int
    length: int


def of_parameter(engine: DeepSpeedEngine, parameter: nn.Parameter) -> Iterator[Fragment]:
    """This rank's share of a parameter; nothing where it has none."""
    if hasattr(parameter, "ds_id"):
        yield from _of_stage_3(engine, parameter)
    elif hasattr(parameter, "_hp_mapping"):
        yield from _of_partition(engine, parameter)
    else:
        yield Fragment(_unsharded(engine)[parameter], 0, 0, parameter.numel())


def _of_stage_3(engine: DeepSpeedEngine, parameter: Any) -> Iterator[Fragment]:
    """Every rank has an equal piece of every parameter, the last ones' filled up."""
    optimizer = engine.optimizer
    group, start, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    begin = dist.get_rank(parameter.ds_process_group) * parameter.partition_numel()
    if (length := min(size, parameter.ds_numel - begin)) > 0:
        yield Fragment(optimizer.fp32_partitioned_groups_flat[group], start, begin, length)


def _of_partition(engine: DeepSpeedEngine, parameter: Any) -> Iterator[Fragment]:
    """Of stages 1 and 2, whose groups are cut into equal pieces wherever that is."""
    if (mapping := parameter._hp_mapping) is not None:
        (held,) = engine.optimizer.optimizer.param_groups[mapping.param_group_index]["params"]
        there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
        yield Fragment(held, there.start, here.start, there.numel)


def _unsharded(engine: DeepSpeedEngine) -> dict[nn.Parameter, Tensor]:
    """Stage 0: each parameter's own tensor in the optimizer, itself or its copy in float32."""
    optimizer = engine.optimizer
    inner = getattr(optimizer, "optimizer", optimizer)
    groups = getattr(optimizer, "fp16_groups", None) or [group["params"] for group in inner.param_groups]
    pairs = zip(groups, inner.param_groups, strict=True)
    return {
        parameter: held
        for parameters, group in pairs
        for parameter, held in zip(parameters, group["params"], strict=True)
    }
