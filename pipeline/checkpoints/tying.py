"""Tied names that are stored beside their owner. `transformers` 5 ties what is equal; where the two differ, both count,
whatever the config says, and the model is an untied one. And names that only transformers 4 ties, whatever the config
says: they get what transformers 5 reads."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from pipeline.checkpoints import names
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import LazyTensor

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from pipeline.models.architecture import Architecture

KEY = "tie_word_embeddings"
"""The key of a config that says whether tied names are tied."""
WINDOW = 2**22
"""Numbers that are compared at a time."""


def differing(state: State, architecture: Architecture, prefix: str) -> tuple[str, ...]:
    """The tied names whose stored tensor is not that of their owner, by `apart`. state: in the names of its files."""
    stored = {parameter: name for name, parameter in names.published(state.tensors, architecture, prefix).items()}
    tied = names.aliases(state.tensors, architecture, prefix)
    owners = {name: stored[architecture.aliases[alias]] for name, alias in tied.items()}
    return tuple(tied[name] for name, _ in apart(state, owners.items()))


def apart(state: State, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Of pairs of stored names those whose tensors are not one: other numbers, or optimizer state of their own."""
    grouped = {name for group in state.groups for name in group.names}
    return [
        (name, owner)
        for name, owner in pairs
        if name != owner and ({name, owner} <= grouped or not same_numbers(state.tensors[name], state.tensors[owner]))
    ]


def same_numbers(one: LazyTensor, other: LazyTensor) -> bool:
    """Whether two tensors have one shape and equal numbers; a few million of them are in memory at a time."""
    if one.shape != other.shape:
        return False
    pairs = zip(one.chunks(0, one.numel, WINDOW), other.chunks(0, other.numel, WINDOW), strict=True)
    return all(torch.equal(a.to(wider := torch.promote_types(a.dtype, b.dtype)), b.to(wider)) for a, b in pairs)


def untied(config: PretrainedConfig) -> PretrainedConfig:
    """The config of the same model without tied names."""
    config = copy.deepcopy(config)
    setattr(config, KEY, False)
    return config


def completed(state: State, aliases: dict[str, str]) -> State:
    """An untied state in which each tied name and its owner have a tensor, the other's where a file holds one of them
    (of a BERT whose decoder differs, its bias does not). With an optimizer nothing is added: whose state would it be?

    aliases: of the tied model."""
    if state.groups:
        return state
    tensors = dict(state.tensors)
    for alias, owner in aliases.items():
        for name, other in ((alias, owner), (owner, alias)):
            if name not in tensors and other in tensors:
                tensors[name] = tensors[other]
    return replace(state, tensors=tensors)


def agreeing(state: State, architecture: Architecture, misread: tuple[str, ...]) -> State:
    """The state for files that transformers 4 and 5 both read: what 4 reads in another parameter's place is that other
    one. Where it was not, that is said, and so is `misread`, what 4 makes otherwise of the result's config."""
    tensors, lines = dict(state.tensors), []
    for name, read in architecture.doubled.items():
        if not same_numbers(tensors[name], tensors[read]):
            lines.append(
                f"'{name}', which transformers 4 adds where transformers 5 adds '{read}', differs from that and is "
                "left behind: the result holds the latter under both names"
            )
        tensors[name] = tensors[read]
    return replace(state, tensors=tensors, unread=(*state.unread, *lines), misread=misread)


def remark(differ: tuple[str, ...], aliases: dict[str, str], where: str = "config.json") -> str:
    """What a reader must know of a model that its config calls tied. where: what says so."""
    pairs = ", ".join(f"'{alias}' differs from '{aliases[alias]}'" for alias in differ)
    return (
        f"{where} says {KEY} true and {pairs}: both are kept, the result says false, as "
        "transformers 5 reads these files (transformers 4 would tie them and drop the first)"
    )
