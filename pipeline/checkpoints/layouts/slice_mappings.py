"""What the optimizer files of stages 1 and 2 say themselves of where a parameter lies: `param_slice_mappings`, a list
of fragments by name for every group and rank.

They list parameters in the order that the script gave to its optimizer. `round_robin_gradients` lays them out in
another one, which `param_shapes` says, and leaves the mappings as they would be without (DeepSpeed 0.19.8,
`runtime/zero/stage_1_and_2.py`: `_round_robin_reorder`, `_link_all_hp_params`)."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.checkpoints.layouts.zero_format import FlatPartition
from pipeline.errors import UserError

Shapes = dict[str, tuple[int, ...]]
ROUND_ROBIN = (
    "it was saved with round_robin_gradients, which orders parameters by the number of ranks; a native result has them "
    "in the optimizer's own order: load it with round_robin_gradients false"
)


def given_order(folder: Path, group: int, shapes: Shapes, shards: Sequence[dict[str, Any]]) -> list[str]:
    """The names of a group in the order that its optimizer was given. shapes: in the order of the flat tensor. Raises
    UserError for mappings that fit neither that order nor the one of `round_robin_gradients`."""
    if any("param_slice_mappings" not in shard for shard in shards):
        return list(shapes)
    mappings = [shard["param_slice_mappings"][group] for shard in shards]
    listed = list(dict.fromkeys(name for mapping in mappings for name in mapping))
    flat = [name for name in shapes if math.prod(shapes[name])]
    if sorted(listed) != sorted(flat) or not _fits(listed, shapes, mappings):
        raise UserError(
            f"{folder}: group {group} lies otherwise in its param_slice_mappings than its shapes say (its parameters "
            "are padded one by one, or files of two checkpoints are mixed); convert it with ds_to_universal first"
        )
    if flat not in (listed, round_robin(listed, len(shards))):
        raise UserError(
            f"{folder}: group {group} is in another order in its param_slice_mappings than in param_shapes, and not in "
            "that of round_robin_gradients; files of two checkpoints are mixed"
        )
    return list(shapes) if flat == listed else listed


def _fits(listed: list[str], shapes: Shapes, mappings: Sequence[dict[str, Any]]) -> bool:
    """Whether every fragment is where the parameters, laid out as listed, would have it."""
    partition = FlatPartition(1, len(mappings), tuple(math.prod(shapes[name]) for name in listed))
    expected: list[dict[str, tuple[int, int]]] = [{} for _ in mappings]
    for name, slices in zip(listed, partition.slices(), strict=True):
        for piece in slices:
            expected[piece.rank][name] = piece.length, piece.offset
    found = [{name: (part.numel, part.start) for name, part in mapping.items()} for mapping in mappings]
    return found == expected


def round_robin(names: Sequence[str], ranks: int) -> list[str]:
    """The order in which `round_robin_gradients` lays parameters out: every rank in turn takes one."""
    return [name for first in range(ranks) for name in names[first::ranks]]
