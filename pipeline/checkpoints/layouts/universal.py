"""DeepSpeed's universal layout: a folder per parameter, loadable at any world size.

`TAG/zero/<name>/{fp32,exp_avg,exp_avg_sq}.pt` hold `{"param": tensor}` (written by us, and by DeepSpeed from stages
1 and 2) or bare flat tensors (by DeepSpeed from stage 3; the true shapes are in the model_states file beside them).
Known holes of DeepSpeed's loader (0.19.8): it checks no shapes, restores no buffers, and in stage 3 shares one step
and group 0's hyper-parameters among all groups; `engine.load` repairs the last.
"""

import io
import math
from functools import partial
from pathlib import Path

import deepspeed
import torch
from torch import Tensor

from pipeline.checkpoints.layouts.zero_format import open_file
from pipeline.checkpoints.serialization.byte_stream import File, Piece
from pipeline.checkpoints.serialization.torch_archive import Draft
from pipeline.checkpoints.state import Group, LazyTensor, State
from pipeline.errors import UserError

WEIGHTS, SLOTS = "fp32", ("exp_avg", "exp_avg_sq")
MODEL_FILES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""Stages 1 and 2 read one, stage 3 the other."""


def read(folder: Path) -> State:
    """The state in a universal tag folder, in module names. Raises UserError."""
    names = sorted(
        path.parent.relative_to(folder / "zero").as_posix() for path in (folder / "zero").rglob(f"{WEIGHTS}.pt")
    )
    if not names:
        raise UserError(f"{folder}: no parameter folders below 'zero'; this is no universal checkpoint")
    optimizer, shapes = open_file(folder / "zero" / "optimizer_state.pt"), _shapes(folder)
    flat = {name: shape for group in shapes for name, shape in group.items()}
    tensors = {name: _entry(folder, name, WEIGHTS, flat.get(name)) for name in names}
    owners = [name for name in names if (folder / "zero" / name / f"{SLOTS[0]}.pt").exists()]
    slots = {slot: {name: _entry(folder, name, slot, flat.get(name)) for name in owners} for slot in SLOTS}
    steps = {n: _step(folder, n, optimizer) for n in owners}
    members = optimizer.get("group_names") or _members(shapes, optimizer["param_groups"])
    groups = tuple(
        Group(tuple(mine), {k: v for k, v in group.items() if k != "params"})
        for mine, group in zip(members, optimizer["param_groups"], strict=True)
    )
    grouped = {name for group in groups for name in group.names}
    if damaged := sorted(name for name in grouped if name not in owners or name not in tensors):
        lacking = SLOTS[0] if damaged[0] in tensors else WEIGHTS
        raise UserError(f"{folder}: '{damaged[0]}' has no {lacking}.pt; the checkpoint is not complete")
    aliases = [
        name for name in names if name not in owners and owners
    ]  # DeepSpeed writes tied names a second time, without moments
    return State({n: e for n, e in tensors.items() if n not in aliases}, slots=slots, steps=steps, groups=groups)


def _shapes(folder: Path) -> list[dict[str, tuple[int, ...]]]:
    """Names and true shapes by group, from the model_states file that DeepSpeed copies beside the folders; ours has none."""
    for file in MODEL_FILES:
        if (folder / file).exists():
            return [
                {name: tuple(shape) for name, shape in group.items()}
                for group in open_file(folder / file).get("param_shapes") or []
            ]
    return []


def _members(shapes: list[dict[str, tuple[int, ...]]], groups: list[dict]) -> list[list[str]]:
    """The names of each group: those of its flats, which `params` numbers where stage 3 has cut a group into several."""
    if not shapes:
        return [[] for _ in groups]
    cut = len(shapes) != len(groups)
    return [
        [name for flat in (group["params"] if cut else [number]) for name in shapes[flat]]
        for number, group in enumerate(groups)
    ]


def _step(folder: Path, name: str, optimizer: dict) -> float:
    """The parameter's own step; DeepSpeed's stage 3 keeps one for each group in the optimizer's file."""
    path = folder / "zero" / name / "step.pt"
    if path.exists():
        return float(open_file(path))
    held = (optimizer.get("optimizer_state_dict") or {}).get("state", {})
    return float(held[0]["step"]) if held and "step" in held[0] else 0.0


def _entry(folder: Path, name: str, slot: str, shape: tuple[int, ...] | None) -> LazyTensor:
    path = folder / "zero" / name / f"{slot}.pt"
    held = tuple(_load(path, None).shape)
    return LazyTensor(shape or held, partial(_load, path, shape))


def _load(path: Path, shape: tuple[int, ...] | None) -> Tensor:
    """The tensor; DeepSpeed's stage 3 writes it flat."""
    held = open_file(path)
    tensor = held["param"] if isinstance(held, dict) else held
    if shape is not None and tensor.numel() != math.prod(shape):
        raise UserError(
            f"{path}: holds {tensor.numel()} numbers, its shape says {math.prod(shape)}; the file is damaged"
        )
    return tensor if shape is None else tensor.view(shape)


def files(state: State, folder: Path, *, step: int = 0) -> list[File]:
    """The files of `state` (module names) as stages 1, 2 and 3 can load them; fresh moments are zeros."""
    found = []
    for name, entry in state.tensors.items():
        for slot in () if name in state.frozen else (WEIGHTS, *SLOTS):
            held = entry if slot == WEIGHTS else state.slots.get(slot, {}).get(name)
            draft = Draft()
            pieces = [Piece(held, 0, math.prod(entry.shape))]
            found.append(draft.file(f"zero/{name}/{slot}.pt", {"param": draft.hole(pieces, entry.shape)}, folder))
        if name not in state.frozen:
            found.append(_small(f"zero/{name}/step.pt", torch.tensor(state.steps.get(name, 0.0))))
    groups = [{**group.hyper, "params": [index]} for index, group in enumerate(state.groups)]
    first = {0: {"step": torch.tensor(state.steps.get(state.groups[0].names[0], 0.0))}}
    found.append(
        _small(
            "zero/optimizer_state.pt",
            {
                "ds_version": deepspeed.__version__,
                "param_groups": groups,
                "optimizer_state_dict": {"state": first, "param_groups": groups},
                "group_names": [list(group.names) for group in state.groups],
            },
        )
    )
    counters = {
        "module": {},
        "dp_world_size": 1,
        "mp_world_size": 1,
        "global_steps": step,
        "global_samples": 0,
        "skipped_steps": 0,
        "lr_scheduler": None,
    }
    return found + [_small(name, counters) for name in MODEL_FILES]


def _small(name: str, content: object) -> File:
    """A file without large tensors."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return File(name, buffer.tell(), lambda: iter([buffer.getvalue()]))
