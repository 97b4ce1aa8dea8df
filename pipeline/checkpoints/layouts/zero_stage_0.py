"""Reading checkpoints of ZeRO stage 0: one file with everything, whose optimizer numbers its parameters and names none.

This pipeline's engine adds the names. Elsewhere they follow from the shapes: groups take the module's parameters in
order, so the module's list is a merge of the groups' lists. Where two merges fit, nothing can tell which is right, and
the checkpoint is refused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.checkpoints.layouts.beside_parameters import beside
from pipeline.checkpoints.layouts.deepspeed_pickles import DynamicLossScaler, LossScaler
from pipeline.checkpoints.layouts.zero_format import STEP, is_scalar, step_of
from pipeline.checkpoints.state import Group, State
from pipeline.checkpoints.tensors import InMemoryTensor, LazyTensor
from pipeline.errors import UserError
from pipeline.optim.optimizers import USE_MUON

A = TypeVar("A")
B = TypeVar("B")
Shape = tuple[int, ...]
NAMES = "group_names"
"""Under which this pipeline's engine keeps the names of its groups' parameters."""


def read(folder: Path, model: dict[str, Any]) -> State:
    """The state in a tag folder, in module names. model: the content of its one file. Raises UserError."""
    rest = beside(folder, model, ())
    parameters = {name: model["module"][name] for name in rest.frozen}
    state = State(
        rest.frozen,
        step=int(model.get("global_steps", 0)),
        aliases=rest.aliases,
        buffers=rest.buffers,
        unread=rest.lost,
    )
    optimizer = model.get("optimizer") or {}
    if "fp32_groups_flat" in optimizer:
        raise UserError(
            f"{folder}: a checkpoint of ZeRO stage 0 in half precision whose optimizer is fused: its float32 weights "
            "(fp32_groups_flat) have no names; save it with zero_stage 1"
        )
    masters: list[list[Tensor]] | None = optimizer.get("fp32_groups")
    inner = optimizer.get("optimizer_state_dict", optimizer)
    state = replace(state, scaling=_scaling(model, optimizer))
    if "param_groups" not in inner:
        return state
    names = _named(model) or _names(folder, parameters, inner, masters)
    return _with_optimizer(_with_masters(state, names, masters or []), inner, names)


def _named(model: dict[str, Any]) -> list[list[str]] | None:
    """The names that this pipeline's engine adds: one for each parameter of the optimizer's groups. What else a script
    calls so is its client state."""
    optimizer = model.get("optimizer") or {}
    groups = optimizer.get("optimizer_state_dict", optimizer).get("param_groups", [])
    said = model.get(NAMES)
    if not (isinstance(said, list) and len(said) == len(groups) and all(isinstance(each, list) for each in said)):
        return None
    fits = [len(each) for each in said] == [len(group["params"]) for group in groups]
    return said if fits and all(name in model["module"] for each in said for name in each) else None


def _scaling(model: dict[str, Any], optimizer: dict[str, Any]) -> dict[str, Any]:
    """The loss scale as the other stages keep it: an object, with limits that the config alone says here. DeepSpeed's
    defaults (0.19.8): a hysteresis of 2, no scale below 1."""
    if "cur_scale" not in optimizer:
        return {}
    dynamic = bool(optimizer["dynamic_loss_scale"])
    scaler = DynamicLossScaler() if dynamic else LossScaler()
    vars(scaler).update(cur_scale=optimizer["cur_scale"], dynamic=dynamic)
    if dynamic:
        said = (model.get("ds_config") or {}).get("fp16") or {}
        vars(scaler).update(
            {key: optimizer[key] for key in ("cur_iter", "last_overflow_iter", "scale_factor", "scale_window")},
            min_scale=said.get("min_loss_scale", 1),
            delayed_shift=said.get("hysteresis", 2),
            cur_hysteresis=said.get("hysteresis", 2),
            consecutive_hysteresis=said.get("consecutive_hysteresis", False),
            raise_error_at_min_scale=True,
            dtype=torch.float16,
        )
    return {"loss_scaler": scaler, "dynamic_loss_scale": dynamic}


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
    scalars: dict[str, dict[str, Any]] = {}
    for group, members in zip(inner["param_groups"], names, strict=True):
        groups.append(Group(tuple(members), {k: v for k, v in group.items() if k != "params"}))
        for name, number in zip(members, group["params"], strict=True):
            kept = inner["state"].get(number, {})
            if (step := step_of(kept, group)) is not None:
                steps[name] = step
            for slot, value in kept.items():
                if isinstance(value, Tensor) and value.dim():
                    slots.setdefault(slot, {})[name] = InMemoryTensor(value)
                elif slot != STEP and is_scalar(value):
                    scalars.setdefault(slot, {})[name] = value
    trained = {name for group in names for name in group}
    frozen = tuple(name for name in state.tensors if name not in trained)
    return replace(state, slots=slots, steps=steps, scalars=scalars, groups=tuple(groups), frozen=frozen)


def _names(
    folder: Path, module: dict[str, Tensor], inner: dict[str, Any], masters: list[list[Tensor]] | None
) -> list[list[str]]:
    """The names of every group's parameters. Raises UserError when several orders fit."""
    hypers = inner["param_groups"]
    if masters:
        pieces, owners = _cut(masters, hypers, lambda master: tuple(master.shape))
        orders = merges(list(module.items()), pieces, _rounded_from)
    else:
        shapes = [[_shape(inner["state"].get(number, {})) for number in group["params"]] for group in hypers]
        if any(hyper.get(USE_MUON) and mine.count(None) > 1 for hyper, mine in zip(hypers, shapes, strict=True)):
            raise UserError(
                f"{folder}: a checkpoint of ZeRO stage 0: Muon orders its matrices by shapes, which its state does not "
                "tell before the first step; save it behind one, or with zero_stage 1"
            )
        kept, owners = _cut(shapes, hypers, lambda shape: shape)
        orders = merges([(name, tuple(tensor.shape)) for name, tensor in module.items()], kept, _may_be)
    if len(orders) != 1:
        how = "no order of names fits its groups" if not orders else "its groups name nothing and several orders fit"
        raise UserError(
            f"{folder}: a checkpoint of ZeRO stage 0: {how}; save it with zero_stage 1 to keep the optimizer's names"
        )
    pairs = list(zip(orders[0], owners, strict=True))
    return [[name for names, owner in pairs if owner == number for name in names] for number in range(len(hypers))]


def _cut(
    groups: Sequence[list[A]], hypers: Sequence[dict[str, Any]], shape: Callable[[A], Shape | None]
) -> tuple[list[list[A]], list[int]]:
    """The groups in pieces whose parameters are in the module's order, and the number of each piece's group: Muon
    orders its matrices by shape, so that those of one shape are."""
    pieces, owners = [], []
    for number, (members, hyper) in enumerate(zip(groups, hypers, strict=True)):
        cut = [list(run) for _, run in groupby(members, shape)] if hyper.get(USE_MUON) else [members]
        pieces += cut
        owners += [number] * len(cut)
    return pieces, owners


def _rounded_from(weights: Tensor, master: Tensor) -> bool:
    """Whether the module's weights are the float32 ones in the module's dtype."""
    return weights.shape == master.shape and torch.equal(weights, master.to(weights.dtype))


def _may_be(shape: Shape, kept: Shape | None) -> bool:
    return kept is None or shape == kept


def _shape(state: dict[str, Any]) -> Shape | None:
    """That of the parameter whose state it is; None where it keeps none, as before the first step."""
    return next((tuple(value.shape) for value in state.values() if isinstance(value, Tensor) and value.dim()), None)


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
