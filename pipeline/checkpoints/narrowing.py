"""Weights and optimizer state in float64, which results hold in float32: what that loses is named, where it loses
anything."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.checkpoints.state import SHOWN, State
from pipeline.checkpoints.tensors import LazyTensor
from pipeline.errors import UserError

WINDOW = 2**22
"""Numbers that are compared at a time."""


def said(place: Path | str, state: State, kept: Collection[str] = ()) -> State:
    """The state, with a line (`unread`) on what float32 cannot hold of weights and optimizer state; the same where it
    holds every number. kept: names of weights that keep their own dtype. Raises UserError for a number that is infinite
    in float32."""
    rounded = [what for what, tensor in _wide(state, kept) if not _held(place, what, tensor)]
    if not rounded:
        return state
    listed = ", ".join(rounded[:SHOWN]) + (", …" if len(rounded) > SHOWN else "")
    line = f"{len(rounded)} tensors hold float64 numbers, of which what float32 cannot hold is left behind: {listed}"
    return replace(state, unread=(*state.unread, line))


def _wide(state: State, kept: Collection[str]) -> Iterator[tuple[str, LazyTensor]]:
    weights = ((name, tensor) for name, tensor in state.tensors.items() if name not in kept)
    slots = ((f"{slot} of {name}", tensor) for slot, held in state.slots.items() for name, tensor in held.items())
    return ((what, tensor) for what, tensor in (*weights, *slots) if tensor.dtype == torch.float64)


def _held(place: Path | str, name: str, tensor: LazyTensor) -> bool:
    """Whether float32 holds every number of a tensor. Raises UserError for one that is too large."""
    exact = True
    for part in tensor.chunks(0, tensor.numel, WINDOW):
        narrow = part.float()
        if (narrow.isinf() & part.isfinite()).any():
            raise UserError(f"{place}: '{name}' holds numbers up to {part.abs().max():.3g}, too large for float32")
        exact = exact and torch.equal(narrow.double().nan_to_num(), part.nan_to_num())
    return exact
