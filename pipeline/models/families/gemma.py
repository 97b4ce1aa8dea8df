"""Gemma 2 and the text models of Gemma 3 as `transformers` has them: RMSNorms in front of every branch and at its end,
gains stored as g - 1, token embeddings times the root of the width, rotary positions, a gated MLP, grouped keys and
values, layers whose attention has a window and layers whose attention has none.

Gemma 2 caps scores and logits. Gemma 3 has a norm over head_dim in front of the rotary positions of queries and keys,
and two bases of those, one for layers with a window and one for the others.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2Model,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import (
    Architecture,
    Attention,
    LayerStack,
    NormEpsilon,
    ParamSpec,
    Space,
    embedding,
    heads,
    linear,
    lm_head,
    norm,
    spaces,
)
from pipeline.models.families import llama
from pipeline.models.families.llama import Traits
from pipeline.models.family import (
    FULL_ATTENTION,
    ROPE,
    SLIDING_ATTENTION,
    ConfigKeys,
    Facts,
    Family,
    Head,
    NormModule,
    causal_positions,
    head_dim,
    text_probe,
)

PATTERN = "_sliding_window_pattern"
"""The key of how many layers make up a pattern, of which the last attends to all tokens; two where there is no key."""
gain = partial(norm, bias=False, offset=1.0)
"""A norm's gain g, stored as g - 1."""


def _decoder(prefix: str, config: PretrainedConfig, traits: Traits, tied: bool) -> tuple[ParamSpec, ...]:
    """Embedding, layers and the final norm, which writes "decoded" where a tied decoder reads it."""
    layer, scale = prefix + "layers.{i}.", _scale(config)
    into = partial(linear, bias=config.attention_bias)
    head_norms = (*gain(layer + "self_attn.q_norm", "query", "head"), *gain(layer + "self_attn.k_norm", "key", "head"))
    return (
        *embedding(prefix + "embed_tokens", "vocab", "embed", tied=tied, decay=tied, scale=scale),
        *gain(layer + "input_layernorm", "embed", "normed"),
        *into(layer + "self_attn.q_proj", "normed", "query"),
        *into(layer + "self_attn.k_proj", "normed", "key"),
        *into(layer + "self_attn.v_proj", "normed", "value"),
        *(head_norms if traits.qk_norm else ()),
        *into(layer + "self_attn.o_proj", "context", "branch"),
        *gain(layer + "post_attention_layernorm", "branch", "embed"),
        *gain(layer + "pre_feedforward_layernorm", "embed", "normed"),
        *linear(layer + "mlp.gate_proj", "normed", "mlp", bias=False),
        *linear(layer + "mlp.up_proj", "normed", "mlp", bias=False),
        *linear(layer + "mlp.down_proj", "mlp", "branch", bias=False),
        *gain(layer + "post_feedforward_layernorm", "branch", "embed"),
        *gain(prefix + "norm", "embed", "decoded" if tied else "normed", scale=1 / scale if tied else 1.0),
    )


def _scale(config: PretrainedConfig) -> float:
    """What the model's code multiplies token embeddings by: the root of the width, held in float32."""
    return float(torch.tensor(config.hidden_size**0.5, dtype=torch.float32))


def _architecture(
    config: PretrainedConfig, traits: Traits, params: tuple[ParamSpec, ...], **options: Any
) -> Architecture:
    """Raises UserError."""
    if config.use_bidirectional_attention:
        raise UserError(
            f"'{config.model_type}' with use_bidirectional_attention is not supported: tokens would attend to those "
            "behind them, and the model is trained to predict those; choose a causal one"
        )
    width, size = config.hidden_size, head_dim(config)
    return Architecture(
        family=traits.family,
        spaces=spaces(
            Space("embed", width, "residual"),
            Space("normed", width, "normed"),
            Space("branch", width, "branch"),
            Space("decoded", width, "tied"),
            *heads(config.num_attention_heads, size, config.num_key_value_heads),
            *([Space("head", size, "fixed")] if traits.qk_norm else []),
            Space("mlp", config.intermediate_size, "mlp"),
            Space("vocab", config.vocab_size, "lookup"),
        ),
        stacks=(
            LayerStack(
                "layers",
                config.num_hidden_layers,
                (Attention(rope=True, qk_norm=traits.qk_norm),),
                period=getattr(config, PATTERN, 2),
            ),
        ),
        params=params,
        epsilon=NormEpsilon(config.rms_norm_eps, "rms_norm_eps"),
        rms=True,
        **options,
    )


def causal_lm(traits: Traits, config: PretrainedConfig) -> Architecture:
    """The decoder and its head, tied to the token embedding unless the config says otherwise. Raises UserError."""
    tied = config.tie_word_embeddings
    head, aliases = lm_head(tied, "model.embed_tokens")
    return _architecture(config, traits, (*_decoder("model.", config, traits, tied), *head), aliases=aliases)


def decoder(traits: Traits, config: PretrainedConfig) -> Architecture:
    """The bare decoder. Raises UserError."""
    params, ignored = _decoder("", config, traits, tied=False), ("lm_head.weight",)
    return _architecture(config, traits, params, outputs={"last_hidden_state": "normed"}, ignored=ignored)


def configure(config_class: Callable[..., PretrainedConfig], sizes: ModelSizes, facts: Facts) -> PretrainedConfig:
    """Scores are divided by the root of head_dim, as in most published models. Raises UserError."""
    config = llama.configure(config_class, sizes, facts)
    config.update({"query_pre_attn_scalar": head_dim(config)})
    return config


def rms_norm(module: Gemma2RMSNorm | Gemma3RMSNorm, x: Tensor) -> Tensor:
    """The norms of `transformers` without their cast to float32."""
    scale: Tensor = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.eps)
    normed: Tensor = x * scale * (1.0 + module.weight)
    return normed


KEYS = llama.KEYS_OF_ALL.extended(
    kept=("cache_implementation", "hidden_act"),
    function=(
        "attention_bias",
        "attn_logit_softcapping",
        "final_logit_softcapping",
        "hidden_activation",
        "query_pre_attn_scalar",
        "sliding_window",
        "use_bidirectional_attention",
    ),
)


def _family(
    traits: Traits,
    config_class: type[PretrainedConfig],
    models: tuple[type[PreTrainedModel], type[PreTrainedModel]],
    norm_class: type[nn.Module],
    keys: ConfigKeys,
    **options: Any,
) -> Family:
    """models: with the head of a causal language model, and without."""
    causal, bare = models
    return Family(
        name=traits.family,
        data="text",
        config_class=config_class,
        heads=(Head("causal-lm", causal, partial(causal_lm, traits)), Head("encoder", bare, partial(decoder, traits))),
        keys=keys,
        positions=causal_positions,
        probe_inputs=text_probe,
        configure=partial(configure, config_class),
        norms=(NormModule(norm_class, "eps", rms_norm),),
        windows=llama.windows_by_type,
        **options,
    )


def resize(sizes: ModelSizes) -> dict[str, Any]:
    """Gemma 3 has two bases of rotary positions; those of a fresh model are its config's own."""
    return {key: value for key, value in llama.resize(sizes).items() if key != ROPE}


def older_keys(config: Gemma3TextConfig) -> dict[str, Any]:
    """The two bases and the scaling, as transformers 4 reads them."""
    local, everywhere = (getattr(config, ROPE)[kind] for kind in (SLIDING_ATTENTION, FULL_ATTENTION))
    scaling = {key: value for key, value in everywhere.items() if key != "rope_theta"}
    return {
        "rope_local_base_freq": local["rope_theta"],
        "rope_theta": everywhere["rope_theta"],
        "rope_scaling": None if scaling == {"rope_type": "default"} else scaling,
        "sliding_window_pattern": getattr(config, PATTERN),
    }


GEMMA2 = _family(
    Traits("gemma2"),
    Gemma2Config,
    (Gemma2ForCausalLM, Gemma2Model),
    Gemma2RMSNorm,
    KEYS,
    resize=llama.resize,
    optional_sizes=("kv_heads", "head_dim", "tied", "rope_theta"),
)
GEMMA3 = _family(
    Traits("gemma3_text", qk_norm=True),
    Gemma3TextConfig,
    (Gemma3ForCausalLM, Gemma3TextModel),
    Gemma3RMSNorm,
    KEYS.extended(kept=("rope_local_base_freq", "sliding_window_pattern"), function=(PATTERN,)),
    resize=resize,
    older_keys=older_keys,
    optional_sizes=("kv_heads", "head_dim", "tied"),
)
