"""Reading native ZeRO checkpoints, stages 0 to 3, any world size: mapped, one tensor at a time."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints.layouts import carried, whole_matrices, zero_stage_0
from pipeline.checkpoints.layouts.beside_parameters import beside
from pipeline.checkpoints.layouts.slice_mappings import ROUND_ROBIN, given_order
from pipeline.checkpoints.layouts.zero_files import TagFiles, tag_files
from pipeline.checkpoints.layouts.zero_format import (
    STEP,
    FlatPartition,
    is_scalar,
    open_file,
    require_numbers,
    said_sub_group_size,
    step_of,
    sub_group_size,
)
from pipeline.checkpoints.state import Group, State
from pipeline.checkpoints.tensors import LazyTensor, ShardedTensor, ShardSlice
from pipeline.errors import UserError

Shapes = dict[str, tuple[int, ...]]
NOTHING = torch.empty(0)


def read(folder: Path) -> State:
    """The state in a tag folder, in module names. Raises UserError for files that do not belong together."""
    files = tag_files(folder)
    state = _partitioned(folder, files) if files.optimizers else zero_stage_0.read(folder, files.model)
    ours = files.model.get(zero_stage_0.NAMES) == [list(group.names) for group in state.groups]  # else a script's
    engine, lost = carried.of_model_states(folder, files, (zero_stage_0.NAMES,) if ours else ())
    return replace(state, engine=engine, unread=(*files.remarks(), *state.unread, *lost))


def stage_of(files: TagFiles, shard: dict[str, Any]) -> int:
    """The ZeRO stage that an optimizer file names; that of DeepSpeed's BF16_Optimizer (bf16 with gradients in float32)
    names none and is cut as in stage 1. Raises UserError for elastic files, and where the model_states file is of
    another stage."""
    inner = shard["optimizer_state_dict"]
    if isinstance(inner.get("base_optimizer_state"), list):
        raise UserError(
            f"{files.optimizers[0]}: saved with elastic_checkpoint, which is not read here; save it without, or "
            "convert it with ds_to_universal"
        )
    stage = 1 if of_bf16_optimizer(shard) else int(inner["zero_stage"])
    if (stage == 3) is not files.stage_3:
        raise UserError(
            f"{files.optimizers[0]}: of ZeRO stage {stage}, which keeps its model_states file under another name; "
            "files of two checkpoints are mixed"
        )
    return stage


def of_bf16_optimizer(shard: dict[str, Any]) -> bool:
    """Whether an optimizer file is one of DeepSpeed's BF16_Optimizer. Others name a stage."""
    inner = shard["optimizer_state_dict"]
    return "zero_stage" not in inner and "param_slice_mappings" in inner


def _partitioned(folder: Path, files: TagFiles) -> State:
    contents, model = [open_file(path) for path in files.optimizers], files.model
    stage = 3 if stage_of(files, contents[0]) == 3 else 1
    shards, world = [content["optimizer_state_dict"] for content in contents], len(contents)
    shapes: list[Shapes] = [{name: tuple(shape) for name, shape in group.items()} for group in model["param_shapes"]]
    base = [s["optimizer_state_dict"] if stage == 3 else s["base_optimizer_state"] for s in shards]
    weights = [s["fp32_flat_groups"] if stage == 3 else s["single_partition_of_fp32_groups"] for s in shards]
    groups: list[Group] = []
    tensors: dict[str, LazyTensor] = {}
    slots: dict[str, dict[str, LazyTensor]] = {}
    steps: dict[str, float] = {}
    for hyper in base[0]["param_groups"]:
        for number in hyper["params"]:  # stage 3 cuts a large group into several flats (sub_group_size)
            flats, states = [w[number] for w in weights], [b["state"].get(number, {}) for b in base]
            held = _weights(folder, stage, number, shapes[number], flats, of_bf16_optimizer(contents[0]))
            kept = _slots(folder, stage, hyper, shapes[number], states, of_bf16_optimizer(contents[0]))
            tensors |= held
            for slot, entries in kept.items():
                slots.setdefault(slot, {}).update(entries)
            if (step := step_of(states[0], hyper)) is not None:
                steps |= dict.fromkeys(shapes[number], step)
        ordered = [_given(folder, number, shapes, shards if stage < 3 else ()) for number in hyper["params"]]
        names = tuple(name for flat in ordered for name in flat)
        groups.append(Group(names, {k: v for k, v in hyper.items() if k != "params"}))
    rest = beside(folder, model, set(tensors), world if stage == 3 else 0)
    scaling, lost = carried.carried(shards[0], carried.OF_THE_OPTIMIZER)
    return State(
        tensors | rest.frozen,
        slots=slots,
        step=int(model.get("global_steps", max(steps.values(), default=0))),
        steps=steps,
        scalars=_scalars(base, shapes),
        groups=tuple(groups),
        aliases=rest.aliases,
        frozen=tuple(rest.frozen),
        buffers=rest.buffers,
        scaling=scaling,
        sub_group=_sub_group(folder, model, base[0]["param_groups"], shapes, world) if stage == 3 else None,
        unread=(*rest.lost, *lost, *_reordered(groups, shapes), *_odd_state(contents[0], base, shapes, stage)),
    )


def _weights(
    folder: Path, stage: int, number: int, shapes: Shapes, flats: list[Tensor], bf16_optimizer: bool
) -> dict[str, LazyTensor]:
    """The weights of one flat tensor's parameters. bf16_optimizer: of DeepSpeed's BF16_Optimizer, which stores them
    with the padding."""
    partition = _partition(stage, len(flats), shapes)
    _require_weights(folder, partition, flats, number, bf16_optimizer)
    return _sharded(shapes, partition.slices(), flats)


def _slots(
    folder: Path, stage: int, hyper: dict[str, Any], shapes: Shapes, states: list[dict[str, Any]], bf16_optimizer: bool
) -> dict[str, dict[str, LazyTensor]]:
    """What the optimizer keeps of one flat tensor's parameters, by slot. hyper: of their group."""
    partition = _partition(stage, len(states), shapes)
    _require_one_step(folder, states)
    slots = {}
    for slot in _kept_flat(states):
        flats = [state.get(slot, NOTHING) for state in states]
        offloaded = whole_matrices.is_cut(partition, flats)
        if whole_matrices.keeps_whole(hyper, stage, slot) and not (bf16_optimizer or offloaded):
            _require_slot(folder, slot, flats, whole_matrices.numbers(partition))
            slots[slot] = whole_matrices.tensors(folder, partition, shapes, flats)
        else:
            _require_slot(folder, slot, flats, [partition.flat] * len(flats))
            slots[slot] = _sharded(shapes, partition.slices(), flats)
    return slots


def _kept_flat(states: list[dict[str, Any]]) -> Iterator[str]:
    """The slots that any rank keeps in flat tensors: what one has, all have to have."""
    flat = (key for state in states for key, value in state.items() if isinstance(value, Tensor) and value.dim() == 1)
    yield from dict.fromkeys(flat)


def _partition(stage: int, world: int, shapes: Shapes) -> FlatPartition:
    return FlatPartition(stage, world, tuple(math.prod(shape) for shape in shapes.values()))


def _scalars(base: list[dict[str, Any]], shapes: list[Shapes]) -> dict[str, dict[str, Any]]:
    """What the optimizer keeps of flat tensors that is one number, by its name and parameter."""
    scalars: dict[str, dict[str, Any]] = {}
    for number, state in base[0]["state"].items():
        for key in _shared(base, number):
            scalars.setdefault(key, {}).update(dict.fromkeys(shapes[number], state[key]))
    return scalars


def _shared(base: list[dict[str, Any]], number: int) -> list[str]:
    """What the optimizer keeps of a flat tensor, beside its step, that is one number, and the same on every rank."""
    states = [b["state"].get(number, {}) for b in base]
    keys = [key for key, value in states[0].items() if key != STEP and is_scalar(value)]
    return [key for key in keys if all(carried.same(state.get(key), states[0][key]) for state in states)]


def _odd_state(first: dict[str, Any], base: list[dict[str, Any]], shapes: list[Shapes], stage: int) -> Iterator[str]:
    """What results do not have as optimizers keep it, in words: what is neither in the shape of their parameters nor
    one number for all ranks, and Muon's momentum in host memory. first: the content of a file."""
    odd: dict[str, None] = {}
    for number, state in base[0]["state"].items():
        shared = (STEP, *_shared(base, number))
        left = (key for key, value in state.items() if value is not None and key not in shared)
        odd |= {key: None for key in left if not (isinstance(state[key], Tensor) and state[key].dim() == 1)}
    yield from (f"optimizer state '{key}' is not in the shape of the parameters and is left behind" for key in odd)
    if not of_bf16_optimizer(first) and any(_cut_momenta(base, shapes, stage)):
        yield whole_matrices.BEGUN_ANEW


def _cut_momenta(base: list[dict[str, Any]], shapes: list[Shapes], stage: int) -> Iterator[bool]:
    """Of each flat tensor whose momentum would be kept whole, whether it is cut."""
    for hyper in base[0]["param_groups"]:
        for number in hyper["params"] if whole_matrices.keeps_whole(hyper, stage, whole_matrices.SLOT) else ():
            flats = [each["state"].get(number, {}).get(whole_matrices.SLOT, NOTHING) for each in base]
            yield whole_matrices.is_cut(_partition(stage, len(base), shapes[number]), flats)


def _given(folder: Path, number: int, shapes: list[Shapes], shards: Sequence[dict[str, Any]]) -> list[str]:
    """The names of a flat in the order of its optimizer group. shards: of stages 1 and 2, which say it."""
    return given_order(folder, number, shapes[number], shards) if shards else list(shapes[number])


def _reordered(groups: list[Group], shapes: list[Shapes]) -> list[str]:
    flat = [name for group in shapes for name in group]
    return [] if flat == [name for group in groups for name in group.names] else [ROUND_ROBIN]


def _sub_group(
    folder: Path, model: dict[str, Any], hypers: list[dict[str, Any]], shapes: list[Shapes], world: int
) -> int:
    """DeepSpeed's sub_group_size, which cuts a group of stage 3 into flats."""
    sizes = [[[math.prod(shape) for shape in shapes[flat].values()] for flat in hyper["params"]] for hyper in hypers]
    limit = sub_group_size(sizes, world, said_sub_group_size(model))
    if limit is None:
        raise UserError(
            f"{folder}: no sub_group_size cuts its optimizer groups as they are cut; its files do not belong together"
        )
    return limit


def _sharded(shapes: Shapes, places: list[list[ShardSlice]], flats: list[Tensor]) -> dict[str, LazyTensor]:
    placed = zip(shapes.items(), places, strict=True)
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


def _require_slot(folder: Path, slot: str, flats: list[Tensor], sizes: list[int]) -> None:
    for rank, (flat, size) in enumerate(zip(flats, sizes, strict=True)):
        require_numbers(folder, f"{slot} of rank {rank}", flat)
        if flat.numel() != size:
            raise UserError(
                f"{folder}: {slot} of rank {rank} holds {flat.numel()} numbers, the shapes say {size}; "
                "the files do not belong together"
            )


def _require_weights(folder: Path, partition: FlatPartition, flats: list[Tensor], group: int, padded: bool) -> None:
    for rank, flat in enumerate(flats):
        require_numbers(folder, f"group {group} of rank {rank}", flat)
        if flat.numel() != (partition.flat if padded else partition.stored(rank)):
            raise UserError(
                f"{folder}: group {group} of rank {rank} holds {flat.numel()} weights, the shapes say "
                f"{partition.stored(rank)}; the files do not belong together"
            )
