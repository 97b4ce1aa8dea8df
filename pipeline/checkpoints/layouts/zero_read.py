"""Reading native ZeRO checkpoints, stages 0 to 3, any world size: mapped, one tensor at a time."""

import math
from functools import partial
from pathlib import Path

from torch import Tensor

from pipeline.checkpoints.layouts import zero_stage_0
from pipeline.checkpoints.layouts.zero_format import Layout, gather, model_file, open_file, optimizer_files, window
from pipeline.checkpoints.state import Group, LazyTensor, State
from pipeline.errors import UserError


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
            f"{folder}: written by {model['dp_world_size']} ranks, {len(files)} optimizer files found; a rank's file is missing"
        )
    return _partitioned(folder, stage, model, shards)


def _partitioned(folder: Path, stage: int, model: dict, shards: list[dict]) -> State:
    shapes = [{name: tuple(shape) for name, shape in group.items()} for group in model["param_shapes"]]
    base = [s["optimizer_state_dict"] if stage == 3 else s["base_optimizer_state"] for s in shards]
    weights = [s["fp32_flat_groups"] if stage == 3 else s["single_partition_of_fp32_groups"] for s in shards]
    groups, tensors, slots, steps = [], {}, {}, {}
    for hyper in base[0]["param_groups"]:
        for number in hyper["params"]:  # stage 3 cuts a large group into several flats (sub_group_size)
            flats, states, mine = (
                [w[number] for w in weights],
                [b["state"].get(number, {}) for b in base],
                shapes[number],
            )
            layout = Layout(stage, len(shards), tuple(math.prod(shape) for shape in mine.values()))
            _check(folder, layout, flats, number)
            _require_one_step(folder, states)
            tensors |= _entries(layout, mine, flats)
            for slot in (key for key, value in states[0].items() if isinstance(value, Tensor) and value.dim() == 1):
                _check_slot(folder, layout, [s[slot] for s in states], slot)
                slots.setdefault(slot, {}).update(_entries(layout, mine, [s[slot] for s in states]))
            steps |= dict.fromkeys(mine, float(states[0].get("step", 0)))
        names = tuple(name for number in hyper["params"] for name in shapes[number])
        groups.append(Group(names, {k: v for k, v in hyper.items() if k != "params"}))
    frozen = _frozen(folder, stage, model, len(shards))
    buffers = {
        name: LazyTensor(tuple(model["module"][name].shape), partial(model["module"].__getitem__, name))
        for name in model.get("buffer_names") or ()
    }
    aliases = dict(model.get("shared_params") or {})
    return State(
        tensors | frozen,
        slots=slots,
        steps=steps,
        groups=tuple(groups),
        aliases=aliases,
        frozen=tuple(frozen),
        buffers=buffers,
    )


def _frozen(folder: Path, stage: int, model: dict, world: int) -> dict[str, LazyTensor]:
    """Parameters that no optimizer group has: whole in stages 1 and 2, a padded piece per rank in stage 3."""
    shapes = {name: tuple(shape) for name, shape in (model.get("frozen_param_shapes") or {}).items()}
    if stage < 3 or not shapes:
        return {name: LazyTensor(shape, partial(model["module"].__getitem__, name)) for name, shape in shapes.items()}
    parts = [open_file(folder / model_file(3, rank))["frozen_param_fragments"] for rank in range(world)]
    layouts = {name: Layout(3, world, (math.prod(shape),)) for name, shape in shapes.items()}
    return {
        name: _entries(layouts[name], {name: shape}, [part[name] for part in parts])[name]
        for name, shape in shapes.items()
    }


def _entries(layout: Layout, shapes: dict[str, tuple[int, ...]], flats: list[Tensor]) -> dict[str, LazyTensor]:
    placed = zip(shapes.items(), layout.pieces(), strict=True)
    return {
        name: LazyTensor(shape, partial(gather, flats, pieces, shape), partial(window, flats, pieces))
        for (name, shape), pieces in placed
    }


def _require_one_step(folder: Path, states: list[dict]) -> None:
    """Ranks that stand at different steps were saved at different times."""
    steps = [float(state.get("step", 0)) for state in states]
    if len(set(steps)) > 1:
        raise UserError(
            f"{folder}: the ranks' optimizer files stand at different steps ({', '.join(f'rank {r}: {s:g}' for r, s in enumerate(steps))}); shards of two checkpoints are mixed"
        )


def _check_slot(folder: Path, layout: Layout, flats: list[Tensor], slot: str) -> None:
    for rank, flat in enumerate(flats):
        if flat.numel() != layout.flat:
            raise UserError(
                f"{folder}: {slot} of rank {rank} holds {flat.numel()} numbers, the shapes say {layout.flat}; the files do not belong together"
            )


def _check(folder: Path, layout: Layout, flats: list[Tensor], group: int) -> None:
    for rank, flat in enumerate(flats):
        if flat.numel() != layout.stored(rank):
            raise UserError(
                f"{folder}: group {group} of rank {rank} holds {flat.numel()} weights, the shapes say {layout.stored(rank)}; "
                "the files do not belong together"
            )
