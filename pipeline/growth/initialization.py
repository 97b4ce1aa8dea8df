"""Normal numbers for some rows of a tensor: they depend on the seed and the row, on no order and no window."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.rng import derive

BLOCK = 1 << 20
"""Numbers that are drawn with one seed."""


def normal(shape: tuple[int, ...], rows: Tensor, std: float, seed: int, *names: str) -> Tensor:
    """Rows `rows` (n,), in rising order, of a float32 tensor of `shape` ~ N(0, std^2), drawn in blocks of rows. seed,
    names: of the random stream; a block's number is added to them, but for the first."""
    width = math.prod(shape[1:])
    height = max(1, BLOCK // max(1, width))
    blocks, place = (rows // height).unique(return_inverse=True)
    drawn = [
        _block(derive(seed, *names, *([number] if number else [])), min(height, shape[0] - number * height), width, std)
        for number in blocks.tolist()
    ]
    return torch.cat(drawn)[place * height + rows % height].view(-1, *shape[1:])


@lru_cache(maxsize=2)  # windows end in the middle of blocks
def _block(seed: int, rows: int, width: int, std: float) -> Tensor:
    return torch.empty(rows, width).normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
