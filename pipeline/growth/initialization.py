"""Normal numbers for a tensor of which some rows are wanted: they depend on the seed and the row, on no order and no window."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 1 << 20
"""Numbers that are drawn with one seed."""

Seeds = Callable[..., int]


def normal(shape: tuple[int, ...], rows: Tensor, std: float, seeds: Seeds) -> Tensor:
    """Rows `rows` (n,), in rising order, of a float32 tensor of `shape` ~ N(0, std^2). seeds: derives a seed from words; none
    for the first block."""
    width = math.prod(shape[1:])
    height = max(1, BLOCK // max(1, width))
    blocks, place = (rows // height).unique(return_inverse=True)
    drawn = [
        _block(seeds(*([str(number)] if number else [])), min(height, shape[0] - number * height), width, std)
        for number in blocks.tolist()
    ]
    return torch.cat(drawn)[place * height + rows % height].view(-1, *shape[1:])


@lru_cache(maxsize=2)  # windows end in the middle of blocks
def _block(seed: int, rows: int, width: int, std: float) -> Tensor:
    return torch.empty(rows, width).normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
