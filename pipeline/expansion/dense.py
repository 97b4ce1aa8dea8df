"""What a growth by dense maps takes besides: every window of a target's rows needs all rows of its sources, and the
maps are in memory."""

import math
from collections.abc import Iterator

from pipeline.accounting.memory import FP32
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.checkpoints.serialization.byte_stream import WINDOW
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.making import making_cost, products
from pipeline.growth.maps import DenseMap
from pipeline.growth.method import Term
from pipeline.growth.plan import GrowthPlan

AS_HELD = 8 + 4
"""Bytes of an entry of a map: in float64, and in the float32 of a product."""


def bytes_held(growth: GrowthPlan) -> int:
    """Of the dense maps, each once."""
    return AS_HELD * sum({id(each.matrix): each.matrix.numel() for each in _maps(growth)}.values())


def _maps(growth: GrowthPlan) -> Iterator[DenseMap]:
    for maps in (growth.maps, *growth.term_maps.values()):
        for spaces in (maps.spaces, *maps.overrides.values()):
            for space in spaces.values():
                yield from (side for side in (space.writes, space.reads, space.gains) if isinstance(side, DenseMap))


def needs(growth: GrowthPlan) -> dict[str, int]:
    """FLOPs of the products, and bytes of the source that are read for them at most. Nothing where all maps are
    copies."""
    if not (flops := making_cost(growth).forward):
        return {}
    shapes, read = {row.name: growth.source.shape(row) for row in growth.source.rows()}, 0
    executor = PlanExecutor(growth)
    for each in growth.tensors:
        if any(products(executor, each)):
            windows = math.ceil(math.prod(each.shape) / WINDOW)
            read += windows * sum(_read(shapes[each.source_name(term)], term) for term in each.sums)
    return {"flops": flops, "read": FP32 * read}


def _read(shape: tuple[int, ...], term: Term) -> int:
    """Numbers that a term reads of a source tensor: all, or the rows of its block."""
    rows = term.block.length if term.block and term.block.axis == 0 else shape[0]
    return rows * math.prod(shape[1:])


def lines(needs: dict[str, int]) -> list[str]:
    """The same for people."""
    if "flops" not in needs:
        return []
    read = amount(needs["read"])
    return [f"             dense maps: {read} of the source are read, {needs['flops']:.3g} FLOPs"]
