"""Qwen2 and Qwen3 as `transformers` has them: decoders of rotary positions, some of whose layers may have a window.

Qwen2's queries, keys and values have biases whatever its config says. Qwen3 has a norm over head_dim in front of the
rotary positions of queries and keys.
"""

from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model, Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from pipeline.models.layer_types import windows_by_type
from pipeline.models.rotary_decoder import ATTENTION_BIAS, KEYS, Traits, family

QWEN_KEYS = KEYS.extended(kept=("max_window_layers",), function=("hidden_act", "sliding_window", "use_sliding_window"))
QWEN2 = family(
    Traits(family="qwen2", qkv_bias=True),
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    QWEN_KEYS.extended(undeclared=("head_dim",)),
    windows=windows_by_type,
)
QWEN3 = family(
    Traits(family="qwen3", bias_keys=(ATTENTION_BIAS,), qk_norm=True),
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    QWEN_KEYS.extended(function=(ATTENTION_BIAS,)),
    windows=windows_by_type,
)
