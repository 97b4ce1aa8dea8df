"""Reading checkpoints of ZeRO stage 0: one file with everything, whose optimizer numbers its parameters and names none.

This pipeline's engine adds the names. Elsewhere they follow from the shapes: groups take the module's parameters in
order, so the module's list is a merge of the groups' lists. Where two merges fit, nothing can tell which is right, and
the checkpoint is refused.
"""

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.checkpoints.layouts.zero_format import model_file, open_file, step_of
from pipeline.checkpoints.state import Group, State
from pipeline.checkpoints.tensors import InMemoryTensor, LazyTensor
from pipeline.errors import UserError

Shape = tuple[int, ...]


def read(folder: Path) -> State:
    """The state in a tag folder, in module names. Raises UserError."""
    model = open_file(folder / model_file(0))
    aliases, buffers = _aliases(model["module"]), tuple(model.get("buffer_names") or ())
    module = {name: tensor for name, tensor in model["module"].items() if name not in aliases}
    parameters = {name: tensor for name, tensor in module.items() if name not in buffers}
    state = State(
        dict(_lazy(parameters)),
        step=int(model.get("global_steps", 0)),
        aliases=aliases,
        buffers=dict(_lazy({name: module[name] for name in buffers})),
    )
    optimizer = model.get("optimizer") or {}
    masters: list[list[Tensor]] | None = optimizer.get("fp32_groups")
    inner = optimizer.get("optimizer_state_dict", optimizer)
    if "param_groups" not in inner:
        return state
    names = model.get("group_names") or _names(folder, parameters, inner, masters)
    return _with_optimizer(_with_masters(state, names, masters or []), inner, names)


def _lazy(tensors: dict[str, Tensor]) -> Iterator[tuple[str, LazyTensor]]:
    for name, tensor in tensors.items():
        yield name, InMemoryTensor(tensor)


def _with_masters(state: State, names: list[list[str]], masters: list[list[Tensor]]) -> State:
    """The float32 weights of a model in half precision in the place of the module's own."""
    pairs = zip(names, masters, strict=True) if masters else ()
    weights = {name: master for group, mine in pairs for name, master in zip(group, mine, strict=True)}
    return replace(state, tensors={**state.tensors, **dict(_lazy(weights))})


def _with_optimizer(state: State, inner: dict[str, Any], names: list[list[str]]) -> State:
    groups: list[Group] = []
    slots: dict[str, dict[str, LazyTensor]] = {}
    steps: dict[str, float] = {}
    for group, members in zip(inner["param_groups"], names, strict=True):
        groups.append(Group(tuple(members), {k: v for k, v in group.items() if k != "params"}))
        for name, number in zip(members, group["params"], strict=True):
            kept = inner["state"].get(number, {})
            if (step := step_of(kept, group)) is not None:
                steps[name] = step
            for slot, value in kept.items():
                if isinstance(value, Tensor) and value.dim():
                    slots.setdefault(slot, {})[name] = InMemoryTensor(value)
    trained = {name for group in names for name in group}
    frozen = tuple(name for name in state.tensors if name not in trained)
    return replace(state, slots=slots, steps=steps, groups=tuple(groups), frozen=frozen)


def _names(
    folder: Path, module: dict[str, Tensor], inner: dict[str, Any], masters: list[list[Tensor]] | None
) -> list[list[str]]:
    """The names of every group's parameters. Raises UserError when several orders fit."""
    if masters:
        orders = merges(list(module.items()), masters, _rounded_from)
    else:
        shapes = [
            [_shape(inner["state"].get(number, {})) for number in group["params"]] for group in inner["param_groups"]
        ]
        orders = merges([(name, tuple(tensor.shape)) for name, tensor in module.items()], shapes, operator.eq)
    if len(orders) != 1:
        how = "no order of names fits its groups" if not orders else "its groups name nothing and several orders fit"
        raise UserError(
            f"{folder}: a checkpoint of ZeRO stage 0: {how}; save it with zero_stage 1 to keep the optimizer's names"
        )
    return orders[0]


def _rounded_from(weights: Tensor, master: Tensor) -> bool:
    """Whether the module's weights are the float32 ones in the module's dtype."""
    return weights.shape == master.shape and torch.equal(weights, master.to(weights.dtype))


def _shape(state: dict[str, Any]) -> Shape:
    return next((tuple(value.shape) for value in state.values() if isinstance(value, Tensor) and value.dim()), ())


A = TypeVar("A")
B = TypeVar("B")
Way = tuple["Way", tuple[str, int | None]] | tuple[()]
"""A chain of (name, number of its group; None: frozen), the last one first."""


def merges(
    module: Sequence[tuple[str, A]], groups: Sequence[Sequence[B]], fits: Callable[[A, B], bool]
) -> list[list[list[str]]]:
    """The ways (two at most) in which `module`, in order, is a merge of `groups`, with frozen parameters in between."""
    frozen = len(module) - sum(map(len, groups))
    paths: dict[tuple[int, ...], list[Way]] = {(0,) * len(groups): [()]}
    for place, (name, value) in enumerate(module):
        after: dict[tuple[int, ...], list[Way]] = {}
        for taken, ways in paths.items():
            for number, group in enumerate(groups):
                if taken[number] < len(group) and fits(value, group[taken[number]]):
                    _extend(after, (*taken[:number], taken[number] + 1, *taken[number + 1 :]), ways, (name, number))
            if place - sum(taken) < frozen:
                _extend(after, taken, ways, (name, None))
        paths = after
    complete = [list(_unrolled(way)) for way in paths.get(tuple(map(len, groups)), [])]
    return [[[name for name, number in way if number == g] for g in range(len(groups))] for way in complete]


def _extend(
    after: dict[tuple[int, ...], list[Way]], key: tuple[int, ...], ways: list[Way], step: tuple[str, int | None]
) -> None:
    after[key] = (after.get(key, []) + [(way, step) for way in ways])[:2]


def _unrolled(way: Way) -> Iterator[tuple[str, int | None]]:
    """The chain from its begin."""
    steps = []
    while way:
        way, step = way
        steps.append(step)
    return reversed(steps)


def _aliases(module: dict[str, Tensor]) -> dict[str, str]:
    """Tied names share their storage; the first name owns it."""
    owners: dict[tuple[int, Shape], str] = {}
    return {
        name: owners[key]
        for name, tensor in module.items()
        if owners.setdefault(key := (tensor.data_ptr(), tuple(tensor.shape)), name) != name
    }
