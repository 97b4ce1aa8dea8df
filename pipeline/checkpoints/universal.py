"""DeepSpeed's universal layout: a folder per parameter, loadable at any world size.

`TAG/zero/<name>/{fp32,exp_avg,exp_avg_sq}.pt` hold `{"param": tensor}` (written by us, and by DeepSpeed from stages
1 and 2) or bare flat tensors (by DeepSpeed from stage 3; the true shapes then come from the model's table).
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

from pipeline.checkpoints.stream import File, Piece
from pipeline.checkpoints.torch_file import Draft
from pipeline.checkpoints.zero_files import open_file
from pipeline.errors import UserError
from pipeline.state import Entry, Group, State

WEIGHTS, SLOTS = "fp32", ("exp_avg", "exp_avg_sq")


def read(folder: Path) -> State:
    """The state in a universal tag folder, in module names. Raises UserError."""
    names = sorted(path.parent.relative_to(folder / "zero").as_posix() for path in (folder / "zero").rglob(f"{WEIGHTS}.pt"))
    if not names:
        raise UserError(f"{folder}: no parameter folders below 'zero'; this is no universal checkpoint")
    optimizer = open_file(folder / "zero" / "optimizer_state.pt")
    tensors = {name: _entry(folder, name, WEIGHTS) for name in names}
    owners = [name for name in names if (folder / "zero" / name / f"{SLOTS[0]}.pt").exists()]
    slots = {slot: {name: _entry(folder, name, slot) for name in owners} for slot in SLOTS}
    steps = {n: float(open_file(folder / "zero" / n / "step.pt")) for n in owners if (folder / "zero" / n / "step.pt").exists()}
    members = optimizer.get("group_names") or [[] for _ in optimizer["param_groups"]]  # DeepSpeed's own do not say whose they are
    groups = tuple(
        Group(tuple(mine), {k: v for k, v in group.items() if k != "params"})
        for mine, group in zip(members, optimizer["param_groups"], strict=True)
    )
    return State(tensors, slots=slots, steps=steps, groups=groups)


def _entry(folder: Path, name: str, slot: str) -> Entry:
    path = folder / "zero" / name / f"{slot}.pt"
    return Entry(tuple(_load(path).shape), partial(_load, path))


def _load(path: Path) -> Tensor:
    held = open_file(path)
    return held["param"] if isinstance(held, dict) else held


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
    found.append(_small("zero/optimizer_state.pt", {
        "ds_version": deepspeed.__version__, "param_groups": groups, "optimizer_state_dict": {"state": first, "param_groups": groups},
        "group_names": [list(group.names) for group in state.groups],
    }))
    counters = {
        "module": {}, "dp_world_size": 1, "mp_world_size": 1, "global_steps": step, "global_samples": 0, "skipped_steps": 0,
        "lr_scheduler": None,
    }
    names = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")  # stages 1 and 2 read one, 3 the other
    return found + [_small(name, counters) for name in names]


def _small(name: str, content: object) -> File:
    """A file without large tensors."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return File(name, buffer.tell(), lambda: iter([buffer.getvalue()]))
