"""Muon's momentum in files of ZeRO stages 1 and 2 (DeepSpeed 0.19.8). Weights and gradients are cut where the shares of
ranks end, but a matrix is orthogonalised whole: each rank keeps the momentum of every matrix that it has a part of, one
behind the other, without padding. What two ranks have a part of, both keep. Before the first step there is none, and on
ranks that have no part of any never. Stage 3, DeepSpeed's BF16_Optimizer, and optimizers in host memory cut it as the
weights."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.checkpoints.layouts.carried import same
from pipeline.checkpoints.layouts.zero_format import FlatPartition
from pipeline.checkpoints.tensors import LazyTensor, ShardedTensor, ShardSlice
from pipeline.errors import UserError
from pipeline.optim.optimizers import USE_MUON

SLOT = "momentum_buffer"


def keeps_whole(hyper: Mapping[str, Any], stage: int, slot: str) -> bool:
    """Whether ranks keep a slot of a group's parameters whole. stage: 1 or 2 of DeepSpeedZeroOptimizer."""
    return stage in (1, 2) and slot == SLOT and bool(hyper.get(USE_MUON))


BEGUN_ANEW = (
    "Muon's momentum is that of an optimizer in host memory, where it is cut; files of stages 1 and 2 hold it whole, "
    "from which an engine that offloads begins it anew, silently"
)


def is_cut(partition: FlatPartition, flats: Sequence[Tensor]) -> bool:
    """Whether momentum is cut as the weights, as an optimizer in host memory does, where whole is another way."""
    kept = [flat.numel() for flat in flats]
    return kept == [partition.flat] * len(kept) != numbers(partition)


def of_rank(partition: FlatPartition, rank: int) -> list[int]:
    """The numbers of the parameters that a rank keeps, in order."""
    return [number for number, _ in partition.of_rank(rank)]


def numbers(partition: FlatPartition) -> list[int]:
    """How many numbers each rank keeps."""
    kept = (of_rank(partition, rank) for rank in range(partition.world))
    return [sum(partition.sizes[number] for number in mine) for mine in kept]


def tensors(
    folder: Path, partition: FlatPartition, shapes: Mapping[str, tuple[int, ...]], flats: Sequence[Tensor]
) -> dict[str, LazyTensor]:
    """The momentum by parameter. Copies of several ranks are held against each other where they are read."""
    found: dict[int, list[ShardSlice]] = {}
    for number, kept in _kept(partition):
        found.setdefault(number, []).append(kept)
    return {
        name: CopiedTensor(shape, flats, found.get(number, []), f"{folder}: {SLOT} of '{name}'")
        for number, (name, shape) in enumerate(shapes.items())
    }


class CopiedTensor(ShardedTensor):
    """A tensor of which several ranks have a whole copy each."""

    def __init__(self, shape: Sequence[int], flats: Sequence[Tensor], copies: Sequence[ShardSlice], named: str):
        super().__init__(shape, flats, copies[:1])
        self._others, self._named = [ShardedTensor(shape, flats, [copy]) for copy in copies[1:]], named

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Raises UserError where the copies differ."""
        numbers = super().read(start, stop)
        if any(not same(numbers, other.read(start, stop)) for other in self._others):
            raise UserError(
                f"{self._named} is not the same on all ranks that keep it; shards of two checkpoints are mixed"
            )
        return numbers


def _kept(partition: FlatPartition) -> Iterator[tuple[int, ShardSlice]]:
    for rank in range(partition.world):
        offset = 0
        for number in of_rank(partition, rank):
            yield number, ShardSlice(rank, offset, 0, partition.sizes[number])
            offset += partition.sizes[number]
