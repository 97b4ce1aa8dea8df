"""Plain attention: which models compute with nothing else, and how they do in float64.

A soft cap on attention scores, cap * tanh(score / cap), is a key of a config that only plain attention obeys: with
torch's fused kernels transformers 5 refuses such a model, and 4.57 forgets the cap without a word. And whatever its
input, the plain attention of transformers takes the softmax in float32, which a comparison in float64 would see.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel
from transformers.masking_utils import eager_mask

CAP = "attn_logit_softcapping"
"""The key of the soft cap on attention scores."""
FLOAT64 = "plain_float64"
"""What transformers calls plain attention whose softmax is taken in the dtype of the scores."""


def is_needed(config: PretrainedConfig, model_class: type[PreTrainedModel]) -> bool:
    """Whether a model computes its own function with plain attention alone."""
    return getattr(config, CAP, None) is not None or not model_class._supports_sdpa


def prepare_float64(model: PreTrainedModel) -> None:
    """Let the attention of `model` be taken in the dtype of its input, where it is plain."""
    if model.config._attn_implementation == "eager":
        model.config._attn_implementation = FLOAT64


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """query (B, H, S, d), key and value (B, G, T, d), attention_mask (B, 1, S, T), added. Returns what the heads give
    out (B, S, H, d), and the weights (B, H, S, T)."""
    per_group = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(per_group, 1) for each in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.dropout(scores.softmax(-1), dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(FLOAT64, attend)
AttentionMaskInterface.register(FLOAT64, eager_mask)
