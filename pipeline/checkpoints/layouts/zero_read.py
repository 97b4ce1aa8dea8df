"""Reading native ZeRO checkpoints, stages 0 to 3, any world size: mapped, one tensor at a time."""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.checkpoints.layouts import zero_stage_0
from pipeline.checkpoints.layouts.zero_format import FlatPartition, model_file, open_file, optimizer_files, step_of
from pipeline.checkpoints.state import Group, State
from pipeline.checkpoints.tensors import InMemoryTensor, LazyTensor, ShardedTensor
from pipeline.errors import UserError

Shapes = dict[str, tuple[int, ...]]


def read(folder: Path) -> State:
    """The state in a tag folder, in module names. Raises UserError for files that do not belong together."""
    files = optimizer_files(folder)
    if not files:
        return zero_stage_0.read(folder)
    shards = [open_file(path)["optimizer_state_dict"] for path in files]
    stage = 3 if int(shards[0]["zero_stage"]) == 3 else 1
    model = open_file(folder / model_file(stage))
    if model["dp_world_size"] != len(files):
        raise UserError(
            f"{folder}: written by {model['dp_world_size']} ranks, {len(files)} optimizer files found; "
            "a rank's file is missing"
        )
    return _partitioned(folder, stage, model, shards)


def _partitioned(folder: Path, stage: int, model: dict[str, Any], shards: list[dict[str, Any]]) -> State:
    shapes: list[Shapes] = [{name: tuple(shape) for name, shape in group.items()} for group in model["param_shapes"]]
    base = [s["optimizer_state_dict"] if stage == 3 else s["base_optimizer_state"] for s in shards]
    weights = [s["fp32_flat_groups"] if stage == 3 else s["single_partition_of_fp32_groups"] for s in shards]
    groups: list[Group] = []
    tensors: dict[str, LazyTensor] = {}
    slots: dict[str, dict[str, LazyTensor]] = {}
    steps: dict[str, float] = {}
    for hyper in base[0]["param_groups"]:
        for number in hyper["params"]:  # stage 3 cuts a large group into several flats (sub_group_size)
            sizes = tuple(math.prod(shape) for shape in shapes[number].values())
            partition = FlatPartition(stage, len(shards), sizes)
            flats, states = [w[number] for w in weights], [b["state"].get(number, {}) for b in base]
            _require_weights(folder, partition, flats, number)
            _require_one_step(folder, states)
            tensors |= _sharded(partition, shapes[number], flats)
            for slot in (key for key, value in states[0].items() if isinstance(value, Tensor) and value.dim() == 1):
                _require_slot(folder, partition, [s[slot] for s in states], slot)
                slots.setdefault(slot, {}).update(_sharded(partition, shapes[number], [s[slot] for s in states]))
            if (step := step_of(states[0], hyper)) is not None:
                steps |= dict.fromkeys(shapes[number], step)
        names = tuple(name for number in hyper["params"] for name in shapes[number])
        groups.append(Group(names, {k: v for k, v in hyper.items() if k != "params"}))
    frozen = _frozen(folder, stage, model, len(shards))
    return State(
        tensors | frozen,
        slots=slots,
        step=int(model.get("global_steps", max(steps.values(), default=0))),
        steps=steps,
        groups=tuple(groups),
        aliases=dict(model.get("shared_params") or {}),
        frozen=tuple(frozen),
        buffers={name: InMemoryTensor(model["module"][name]) for name in model.get("buffer_names") or ()},
    )


def _frozen(folder: Path, stage: int, model: dict[str, Any], world: int) -> dict[str, LazyTensor]:
    """Parameters that no optimizer group has: whole in stages 1 and 2, a padded slice per rank in stage 3."""
    shapes: Shapes = {name: tuple(shape) for name, shape in (model.get("frozen_param_shapes") or {}).items()}
    if stage < 3 or not shapes:
        return {name: InMemoryTensor(model["module"][name]) for name in shapes}
    parts = [open_file(folder / model_file(3, rank))["frozen_param_fragments"] for rank in range(world)]
    tensors: dict[str, LazyTensor] = {}
    for name, shape in shapes.items():
        partition = FlatPartition(3, world, (math.prod(shape),))
        tensors |= _sharded(partition, {name: shape}, [part[name] for part in parts])
    return tensors


def _sharded(partition: FlatPartition, shapes: Shapes, flats: list[Tensor]) -> dict[str, LazyTensor]:
    placed = zip(shapes.items(), partition.slices(), strict=True)
    return {name: ShardedTensor(shape, flats, slices) for (name, shape), slices in placed}


def _require_one_step(folder: Path, states: list[dict[str, Any]]) -> None:
    """Ranks that stand at different steps were saved at different times."""
    steps = [float(state.get("step", 0)) for state in states]
    if len(set(steps)) > 1:
        listed = ", ".join(f"rank {rank}: {step:g}" for rank, step in enumerate(steps))
        raise UserError(
            f"{folder}: the ranks' optimizer files stand at different steps ({listed}); "
            "shards of two checkpoints are mixed"
        )


def _require_slot(folder: Path, partition: FlatPartition, flats: list[Tensor], slot: str) -> None:
    for rank, flat in enumerate(flats):
        if flat.numel() != partition.flat:
            raise UserError(
                f"{folder}: {slot} of rank {rank} holds {flat.numel()} numbers, the shapes say {partition.flat}; "
                "the files do not belong together"
            )


def _require_weights(folder: Path, partition: FlatPartition, flats: list[Tensor], group: int) -> None:
    for rank, flat in enumerate(flats):
        if flat.numel() != partition.stored(rank):
            raise UserError(
                f"{folder}: group {group} of rank {rank} holds {flat.numel()} weights, the shapes say "
                f"{partition.stored(rank)}; the files do not belong together"
            )
