"""FLOPs of Muon's updates: the matrix products of DeepSpeed's Newton-Schulz iterations (0.19.8), of one optimizer step
on all ranks together. Held against torch's counter in tests/distributed/test_muon.py."""

import math

from pipeline.models.architecture import Architecture
from pipeline.optim.optimizers import Muon, OptimizerSpec

STEPS = 5
"""Iterations of an update."""


def orthogonalisation(architecture: Architecture, optimizer: OptimizerSpec, zero_stage: int, ranks: int) -> int:
    """FLOPs of one step. Stage 0 has every rank orthogonalise every matrix, stages 1 and 2 have each rank of those that
    share one, stage 3 has one rank for each. 0 for other optimizers."""
    if not isinstance(optimizer, Muon):
        return 0
    matrices = [architecture.shape(row) for row in architecture.rows() if row.kind == "hidden"]
    times = _times(sorted(matrices, reverse=True), zero_stage, ranks)
    return sum(count * newton_schulz(shape, optimizer.ns_method) for shape, count in times)


def newton_schulz(shape: tuple[int, ...], ns_method: str) -> int:
    """FLOPs of one matrix. `standard`: X Xᵀ, its square and a product with X in every iteration. `gram`: the iterations
    go on with X Xᵀ, and X takes part at the begin, at a restart behind the second one, and at the end; of a square
    matrix it is `standard`."""
    short, long = sorted(shape)
    if ns_method == "standard" or short == long:
        return STEPS * short**2 * (4 * long + 2 * short)
    return short**2 * (8 * long + 28 * short)


def _times(matrices: list[tuple[int, ...]], zero_stage: int, ranks: int) -> list[tuple[tuple[int, ...], int]]:
    """Each matrix with the number of ranks that orthogonalise it. matrices: in the order of their group."""
    if zero_stage in (0, 3):
        return [(shape, ranks if zero_stage == 0 else 1) for shape in matrices]
    share = 2 * math.ceil(sum(map(math.prod, matrices)) / (2 * ranks))
    found, end = [], 0
    for shape in matrices:
        begin, end = end, end + math.prod(shape)
        found.append((shape, (end - 1) // share - begin // share + 1))
    return found
