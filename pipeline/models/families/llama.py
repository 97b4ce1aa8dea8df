"""Llama, Mistral and Phi-3 as `transformers` has them: the plainest decoders of rotary positions.

All layers of Mistral and Phi-3 may have a window. Phi-3 has its projections fused, and drops what its branches add.
"""

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

from pipeline.models.config_keys import ORIGINAL
from pipeline.models.layer_types import windows_everywhere
from pipeline.models.rotary_decoder import ATTENTION_BIAS, KEYS, MLP_BIAS, Traits, family

LLAMA = family(
    Traits(family="llama", bias_keys=(ATTENTION_BIAS, MLP_BIAS)),
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    KEYS.extended(function=("hidden_act", ATTENTION_BIAS, MLP_BIAS, "pretraining_tp")),
)
MISTRAL = family(
    Traits(family="mistral"),
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    KEYS.extended(function=("hidden_act", "sliding_window")),
    windows=windows_everywhere,
)
PHI3 = family(
    Traits(family="phi3", fused=True, dropout=("embd_pdrop", "resid_pdrop")),
    Phi3Config,
    Phi3ForCausalLM,
    Phi3Model,
    KEYS.extended(
        training=("embd_pdrop", "resid_pdrop"),
        function=("hidden_act", ORIGINAL, "sliding_window"),
        undeclared=("head_dim",),
    ),
    windows=windows_everywhere,
)
