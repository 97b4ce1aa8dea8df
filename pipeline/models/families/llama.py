"""Llama, Mistral and Phi-3 as `transformers` has them: the plainest decoders of rotary positions.

All layers of Mistral and Phi-3 may have a window. Phi-3 has its projections fused, and drops what its branches add.
"""

import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    Phi3Config,
    Phi3ForCausalLM,
    Phi3Model,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from pipeline.models.family import NormModule
from pipeline.models.layer_types import windows_everywhere
from pipeline.models.rotary_decoder import ATTENTION_BIAS, KEYS, MLP_BIAS, Traits, family


def rms_norm(module: LlamaRMSNorm | MistralRMSNorm | Qwen2RMSNorm | Qwen3RMSNorm | Phi3RMSNorm, x: Tensor) -> Tensor:
    """The norms of `transformers` without their cast to float32."""
    scale: Tensor = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)
    normed: Tensor = module.weight * x * scale
    return normed


LLAMA = family(
    Traits(family="llama", bias_keys=(ATTENTION_BIAS, MLP_BIAS)),
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    NormModule(LlamaRMSNorm, "variance_epsilon", rms_norm),
    KEYS.extended(function=("hidden_act", ATTENTION_BIAS, MLP_BIAS, "pretraining_tp")),
)
MISTRAL = family(
    Traits(family="mistral"),
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    NormModule(MistralRMSNorm, "variance_epsilon", rms_norm),
    KEYS.extended(function=("hidden_act", "sliding_window")),
    windows=windows_everywhere,
)
PHI3 = family(
    Traits(family="phi3", fused=True, dropout=("embd_pdrop", "resid_pdrop")),
    Phi3Config,
    Phi3ForCausalLM,
    Phi3Model,
    NormModule(Phi3RMSNorm, "variance_epsilon", rms_norm),
    KEYS.extended(
        training=("embd_pdrop", "resid_pdrop"),
        function=("hidden_act", "original_max_position_embeddings", "sliding_window"),
        undeclared=("head_dim",),
    ),
    windows=windows_everywhere,
)
