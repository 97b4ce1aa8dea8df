"""Reading checkpoints of ZeRO stage 0: one file with everything, whose optimizer numbers its parameters and names none.

Our engine adds the names. Elsewhere they follow from the shapes: groups take the module's parameters in order, so the
module's list is a merge of the groups' lists. Where two merges fit, nothing can tell which is right, and we refuse.
"""

from pathlib import Path

import torch
from torch import Tensor

from pipeline.checkpoints.layouts.zero_format import model_file, open_file
from pipeline.checkpoints.state import Group, LazyTensor, State
from pipeline.errors import UserError

Shape = tuple[int, ...]


def read(folder: Path) -> State:
    """The state in a tag folder, in module names. Raises UserError."""
    model = open_file(folder / model_file(0))
    aliases, buffers = _aliases(model["module"]), tuple(model.get("buffer_names") or ())
    held = {name: tensor for name, tensor in model["module"].items() if name not in aliases}
    tensors = {name: _entry(tensor) for name, tensor in held.items() if name not in buffers}
    optimizer = model.get("optimizer") or {}
    masters: list[list[Tensor]] | None = optimizer.get("fp32_groups")
    inner = optimizer.get("optimizer_state_dict", optimizer)
    if "param_groups" not in inner:
        return State(tensors, aliases=aliases, buffers={name: _entry(held[name]) for name in buffers})
    names = model.get("group_names") or _names(folder, {n: held[n] for n in tensors}, inner, masters)
    if masters:
        tensors |= {
            name: _entry(master)
            for group, mine in zip(names, masters, strict=True)
            for name, master in zip(group, mine, strict=True)
        }
    known = {name for group in names for name in group}
    return _with_optimizer(
        State(
            tensors,
            aliases=aliases,
            frozen=tuple(n for n in tensors if n not in known),
            buffers={name: _entry(held[name]) for name in buffers},
        ),
        inner,
        names,
    )


def _entry(tensor: Tensor) -> LazyTensor:
    return LazyTensor(tuple(tensor.shape), lambda: tensor)


def _with_optimizer(state: State, inner: dict, names: list[list[str]]) -> State:
    groups, slots, steps = [], {}, {}
    for group, members in zip(inner["param_groups"], names, strict=True):
        groups.append(Group(tuple(members), {k: v for k, v in group.items() if k != "params"}))
        for name, number in zip(members, group["params"], strict=True):
            held = inner["state"].get(number, {})
            steps[name] = float(held.get("step", 0))
            for slot, value in held.items():
                if isinstance(value, Tensor) and value.dim():
                    slots.setdefault(slot, {})[name] = _entry(value)
    return State(
        state.tensors,
        slots=slots,
        steps=steps,
        groups=tuple(groups),
        aliases=state.aliases,
        frozen=state.frozen,
        buffers=state.buffers,
    )


def _names(folder: Path, module: dict[str, Tensor], inner: dict, masters: list[list[Tensor]] | None) -> list[list[str]]:
    """The names of every group's parameters. Raises UserError when several orders fit."""
    if masters:
        found = merges(list(module.items()), masters, lambda a, b: a.shape == b.shape and torch.equal(a, b.to(a.dtype)))
    else:
        shapes = [
            [_shape(inner["state"].get(number, {})) for number in group["params"]] for group in inner["param_groups"]
        ]
        found = merges([(name, tuple(tensor.shape)) for name, tensor in module.items()], shapes, lambda a, b: a == b)
    if len(found) != 1:
        how = "no order of names fits its groups" if not found else "its groups name nothing and several orders fit"
        raise UserError(
            f"{folder}: a checkpoint of ZeRO stage 0: {how}; save it with zero_stage 1 to keep the optimizer's names"
        )
    return found[0]


def _shape(held: dict) -> Shape:
    return next((tuple(value.shape) for value in held.values() if isinstance(value, Tensor) and value.dim()), ())


def merges(module: list[tuple[str, object]], groups: list[list[object]], fits) -> list[list[list[str]]]:
    """The ways (two at most) in which `module`, in order, is a merge of `groups`, with frozen parameters in between."""
    frozen = len(module) - sum(map(len, groups))
    paths: dict[tuple[int, ...], list[tuple]] = {(0,) * len(groups): [()]}
    for place, (name, value) in enumerate(module):
        after: dict[tuple[int, ...], list[tuple]] = {}
        for taken, ways in paths.items():
            for number, group in enumerate(groups):
                if taken[number] < len(group) and fits(value, group[taken[number]]):
                    _extend(after, (*taken[:number], taken[number] + 1, *taken[number + 1 :]), ways, (name, number))
            if place - sum(taken) < frozen:
                _extend(after, taken, ways, (name, None))
        paths = after
    whole = paths.get(tuple(map(len, groups)), [])
    return [[[name for name, number in _unrolled(way) if number == g] for g in range(len(groups))] for way in whole]


def _extend(after: dict, key: tuple[int, ...], ways: list[tuple], step: tuple) -> None:
    after[key] = (after.get(key, []) + [(way, step) for way in ways])[:2]


def _unrolled(way: tuple) -> list[tuple]:
    steps = []
    while way:
        way, step = way
        steps.append(step)
    return steps[::-1]


def _aliases(module: dict[str, Tensor]) -> dict[str, str]:
    """Tied names share their storage; the first name owns it."""
    owners: dict[tuple, str] = {}
    return {
        name: owners[key]
        for name, tensor in module.items()
        if owners.setdefault(key := (tensor.data_ptr(), tuple(tensor.shape)), name) != name
    }
