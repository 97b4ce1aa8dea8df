"""Gemma 2 and the text models of Gemma 3 as `transformers` has them: decoders of rotary positions with RMSNorms in
front of every branch and at its end, gains stored as g - 1, token embeddings times the root of the width, layers whose
attention has a window and layers whose attention has none.

Gemma 2 caps scores and logits. Gemma 3 has a norm over head_dim in front of the rotary positions of queries and keys,
and two bases of those, one for layers with a window and one for the others.
"""

from functools import partial

from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2Model,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextModel,
)

from pipeline.models.layer_types import FULL_ATTENTION, SLIDING_ATTENTION, LayerPattern, windows_by_type
from pipeline.models.rotary_decoder import ATTENTION_BIAS, BIDIRECTIONAL, CAPS, KEYS, Traits, family

SCORES_OVER = "query_pre_attn_scalar"
GEMMA = partial(
    Traits,
    bias_keys=(ATTENTION_BIAS,),
    branch_ends=True,
    gain_offset=1.0,
    scaled_embedding=True,
    scores_over=SCORES_OVER,
)
GEMMA_KEYS = KEYS.extended(
    kept=("cache_implementation", "hidden_act"),
    function=(ATTENTION_BIAS, *CAPS, "hidden_activation", SCORES_OVER, "sliding_window", BIDIRECTIONAL),
)
GEMMA3_PATTERN = LayerPattern(
    full=-1,
    usual=6,
    period_key="sliding_window_pattern",
    bases={SLIDING_ATTENTION: "rope_local_base_freq", FULL_ATTENTION: "rope_theta"},
    scaled=(FULL_ATTENTION,),
)


GEMMA2 = family(
    GEMMA(family="gemma2", pattern=LayerPattern(full=-1, usual=2)),
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2Model,
    GEMMA_KEYS,
    windows=windows_by_type,
)
GEMMA3 = family(
    GEMMA(family="gemma3_text", pattern=GEMMA3_PATTERN, qk_norm=True),
    Gemma3TextConfig,
    Gemma3ForCausalLM,
    Gemma3TextModel,
    GEMMA_KEYS.extended(kept=("rope_local_base_freq", "sliding_window_pattern"), function=("_sliding_window_pattern",)),
    windows=windows_by_type,
)
