"""DeepSpeed's universal layout: a folder per parameter, loadable at any world size.

`TAG/zero/<name>/{fp32,exp_avg,exp_avg_sq}.pt` hold `{"param": tensor}` (written by us, and by DeepSpeed from stages
1 and 2) or bare flat tensors (by DeepSpeed from stage 3; the true shapes then come from the model's table).
Known holes of DeepSpeed's loader (0.19.8): it checks no shapes, restores no buffers, and in stage 3 shares one step
and group 0's hyper-parameters among all groups; `engine.load` repairs the last.
"""

from functools import partial
from pathlib import Path

import deepspeed
import torch
from torch import Tensor

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
    groups = tuple(
        Group((), {k: v for k, v in group.items() if k != "params"})  # the layout does not say whose they are
        for group in optimizer["param_groups"]
    )
    return State(tensors, slots=slots, steps=steps, groups=groups)


def _entry(folder: Path, name: str, slot: str) -> Entry:
    path = folder / "zero" / name / f"{slot}.pt"
    return Entry(tuple(_load(path).shape), partial(_load, path))


def _load(path: Path) -> Tensor:
    held = open_file(path)
    return held["param"] if isinstance(held, dict) else held


def write(state: State, folder: Path, *, step: int = 0) -> None:
    """Write `state` (module names) so that stages 1, 2 and 3 can load it; fresh moments are zeros."""
    for name, entry in state.tensors.items():
        place = folder / "zero" / name
        place.mkdir(parents=True)
        values = entry.open().to(torch.float32)
        torch.save({"param": values.clone()}, place / f"{WEIGHTS}.pt")
        for slot in SLOTS:
            held = state.slots.get(slot, {}).get(name)
            torch.save({"param": held.open().clone() if held else torch.zeros_like(values)}, place / f"{slot}.pt")
        torch.save(torch.tensor(state.steps.get(name, 0.0)), place / "step.pt")
    groups = [{**group.hyper, "params": [index]} for index, group in enumerate(state.groups)]
    first = {0: {"step": torch.tensor(state.steps.get(state.groups[0].names[0], 0.0))}}
    torch.save(
        {"ds_version": deepspeed.__version__, "param_groups": groups, "optimizer_state_dict": {"state": first, "param_groups": groups}},
        folder / "zero" / "optimizer_state.pt",
    )
    counters = {
        "module": {}, "dp_world_size": 1, "mp_world_size": 1, "global_steps": step, "global_samples": 0, "skipped_steps": 0,
        "lr_scheduler": None,
    }
    for file in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):  # stages 1 and 2 read one, 3 the other
        torch.save(counters, folder / file)
