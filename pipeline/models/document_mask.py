"""Keeping the documents of a packed block apart: a mask of attention that is block-diagonal."""

import torch
from torch import Tensor


def document_mask(documents: Tensor, dtype: torch.dtype, causal: bool = False) -> Tensor:
    """What is added to the scores of attention so that tokens attend to their own document alone, (B, 1, S, S) of
    `dtype`: 0, or its lowest number, whose weight is exactly 0. `sdpa` and `eager` attention of transformers take it as
    `attention_mask`, in the dtype that they compute in. FLOPs are counted as without it: both compute all products.

    documents: (B, S), the number of every token's document. causal: none attends to a later one either. A window of
    attention narrower than the block is not in it.
    """
    apart = documents[:, None, :, None] != documents[:, None, None, :]
    if causal:
        apart = apart | torch.ones(apart.shape[-2:], dtype=torch.bool, device=documents.device).triu(1)
    return torch.zeros(apart.shape, dtype=dtype, device=documents.device).masked_fill(apart, torch.finfo(dtype).min)
