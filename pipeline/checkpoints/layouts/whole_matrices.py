"""Muon's momentum in files of ZeRO stages 1 and 2 (DeepSpeed 0.19.8). Weights and gradients are cut where the shares of
ranks end, but a matrix is orthogonalised whole: each rank keeps the momentum of every matrix that it has a part of, one
behind the other, without padding. What two ranks have a part of, both keep. Before the first step there is none, and on
ranks that have no part of any never. Stage 3, and DeepSpeed's BF16_Optimizer, cut it as the weights."""

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.checkpoints.layouts.zero_format import FlatPartition
from pipeline.checkpoints.tensors import ShardSlice
from pipeline.optim.optimizers import USE_MUON

SLOT = "momentum_buffer"


def keeps_whole(hyper: Mapping[str, Any], stage: int, slot: str) -> bool:
    """Whether ranks keep a slot of a group's parameters whole. stage: 1 or 2 of DeepSpeedZeroOptimizer."""
    return stage in (1, 2) and slot == SLOT and bool(hyper.get(USE_MUON))


def of_rank(partition: FlatPartition, rank: int) -> list[int]:
    """The numbers of the parameters that a rank keeps, in order."""
    return [number for number, _ in partition.of_rank(rank)]


def numbers(partition: FlatPartition) -> list[int]:
    """How many numbers each rank keeps."""
    kept = (of_rank(partition, rank) for rank in range(partition.world))
    return [sum(partition.sizes[number] for number in mine) for mine in kept]


def slices(partition: FlatPartition) -> list[list[ShardSlice]]:
    """For every parameter, where the first rank that keeps it has it."""
    found: dict[int, list[ShardSlice]] = {}
    for number, kept in _kept(partition):
        found.setdefault(number, [kept])
    return [found.get(number, []) for number in range(len(partition.sizes))]


def _kept(partition: FlatPartition) -> Iterator[tuple[int, ShardSlice]]:
    for rank in range(partition.world):
        offset = 0
        for number in of_rank(partition, rank):
            yield number, ShardSlice(rank, offset, 0, partition.sizes[number])
            offset += partition.sizes[number]
