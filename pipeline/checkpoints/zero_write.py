"""Writing native ZeRO checkpoints that `engine.load_checkpoint` of an ordinary DeepSpeed script accepts.

Flat tensors are built in mapped scratch files, so that memory does not grow with the model.
"""

import math
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from torch import Tensor

from pipeline.checkpoints.scratch import Scratch
from pipeline.checkpoints.zero_files import Layout, model_file, optimizer_file
from pipeline.state import Entry, State

SLOTS = ("exp_avg", "exp_avg_sq")


def write(state: State, folder: Path, *, stage: int, world: int, bf16: bool = False, step: int = 0) -> None:
    """Write `state` (module names, groups in the engine's order) as `world` ranks of ZeRO `stage` into a tag folder."""
    scratch = Scratch(folder / ".scratch")
    layouts = [Layout(stage, world, tuple(math.prod(state.tensors[n].shape) for n in group.names)) for group in state.groups]
    weights = [_flats(state.tensors, group.names, layout, scratch) for group, layout in zip(state.groups, layouts, strict=True)]
    slots = {s: [_flats(state.slots.get(s, {}), g.names, lay, scratch) for g, lay in zip(state.groups, layouts, strict=True)] for s in SLOTS}
    for rank in range(world):
        held = {slot: [flats[rank] for flats in groups] for slot, groups in slots.items()}
        mine = [flats[rank] for flats in weights]
        inner = _stage_3(state, mine, held, world) if stage == 3 else _stage_2(state, layouts, mine, held, rank, stage)
        torch.save({"optimizer_state_dict": inner, "ds_version": deepspeed.__version__}, folder / optimizer_file(rank, bf16))
    for rank in range(world if stage == 3 else 1):
        torch.save(_model(state, stage, world, bf16, step, scratch), folder / model_file(stage, rank))
    scratch.remove()


def _flats(entries: dict[str, Entry], names: tuple[str, ...], layout: Layout, scratch: Scratch) -> list[Tensor]:
    """One group's flat tensor of every rank; a parameter without an entry (a fresh moment) stays zero."""
    flats = [scratch.zeros((layout.flat,)) for _ in range(layout.world)]
    for name, pieces in zip(names, layout.pieces(), strict=True):
        if name in entries:
            values = entries[name].open().reshape(-1)
            for piece in pieces:
                flats[piece.rank][piece.offset : piece.offset + piece.length] = values[piece.start : piece.start + piece.length]
    return flats


def _base(state: State, held: dict[str, list[Tensor]]) -> dict:
    """torch's own optimizer state, one flat tensor per group."""
    groups = [{**group.hyper, "params": [index]} for index, group in enumerate(state.groups)]
    steps = [torch.tensor(state.steps.get(group.names[0], 0.0) if group.names else 0.0) for group in state.groups]
    per_group = {i: {"step": steps[i], **{slot: flats[i] for slot, flats in held.items()}} for i in range(len(groups))}
    return {"state": per_group, "param_groups": groups}


def _stage_2(state: State, layouts: list[Layout], weights: list[Tensor], held: dict, rank: int, stage: int) -> dict:
    stored = [flat[: layout.stored(rank)].clone() for flat, layout in zip(weights, layouts, strict=True)]
    return {
        "base_optimizer_state": _base(state, held),
        "single_partition_of_fp32_groups": stored,
        "group_paddings": [layout.flat - layout.stored(rank) for layout in layouts],
        "partition_count": [layout.world for layout in layouts],
        "zero_stage": stage,
        "loss_scaler": LossScaler(1.0), "dynamic_loss_scale": False, "overflow": False,
        "ds_version": deepspeed.__version__,
    }


def _stage_3(state: State, weights: list[Tensor], held: dict, world: int) -> dict:
    return {
        "zero_stage": 3, "loss_scaler": LossScaler(1.0), "dynamic_loss_scale": False, "overflow": False,
        "partition_count": world, "optimizer_state_dict": _base(state, held), "fp32_flat_groups": weights,
    }


def _model(state: State, stage: int, world: int, bf16: bool, step: int, scratch: Scratch) -> dict:
    module = _placeholders(state) if stage == 3 else _module(state, torch.bfloat16 if bf16 else torch.float32, scratch)
    return {
        "module": module, "buffer_names": [], "optimizer": None, "lr_scheduler": None,
        "param_shapes": [{name: torch.Size(state.tensors[name].shape) for name in group.names} for group in state.groups],
        "frozen_param_shapes": None, "frozen_param_fragments": None, "shared_params": dict(state.aliases),
        "data_sampler": None, "random_ltd": None, "skipped_steps": 0, "global_steps": step, "global_samples": 0,
        "dp_world_size": world, "mp_world_size": 1, "ds_config": {}, "ds_version": deepspeed.__version__,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
    }


def _module(state: State, dtype: torch.dtype, scratch: Scratch) -> dict[str, Tensor]:
    """Every key of the module's state_dict; tied names share storage."""
    module = {}
    for name, entry in state.tensors.items():
        module[name] = scratch.zeros(entry.shape, dtype)
        module[name].copy_(entry.open())
    return module | {alias: module[owner] for alias, owner in state.aliases.items()}


def _placeholders(state: State) -> dict[str, Tensor]:
    return {name: torch.empty(0) for name in (*state.tensors, *state.aliases)}

