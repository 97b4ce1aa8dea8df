"""Gemma 2 as `transformers` has it: RMSNorms in front of every branch and at its end, gains stored as g - 1, token
embeddings times the root of the width, capped scores and logits, rotary positions, a gated MLP, grouped keys and
values, layers whose attention has a window and layers whose attention has none."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, Gemma2Model, PretrainedConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

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
from pipeline.models.family import Facts, Family, Head, NormModule, causal_positions, head_dim, text_probe

PATTERN = 2
"""A layer whose attention has a window, and one whose attention has none."""
gain = partial(norm, bias=False, offset=1.0)
"""A norm's gain g, stored as g - 1."""


def _decoder(prefix: str, config: PretrainedConfig, tied: bool) -> tuple[ParamSpec, ...]:
    """Embedding, layers and the final norm, which writes "decoded" where a tied decoder reads it."""
    layer, scale = prefix + "layers.{i}.", _scale(config)
    into = partial(linear, bias=config.attention_bias)
    return (
        *embedding(prefix + "embed_tokens", "vocab", "embed", tied=tied, decay=tied, scale=scale),
        *gain(layer + "input_layernorm", "embed", "normed"),
        *into(layer + "self_attn.q_proj", "normed", "query"),
        *into(layer + "self_attn.k_proj", "normed", "key"),
        *into(layer + "self_attn.v_proj", "normed", "value"),
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


def _architecture(config: PretrainedConfig, params: tuple[ParamSpec, ...], **options: Any) -> Architecture:
    """Raises UserError."""
    if config.use_bidirectional_attention:
        raise UserError(
            f"'{config.model_type}' with use_bidirectional_attention is not supported: tokens would attend to those "
            "behind them, and the model is trained to predict those; choose a causal one"
        )
    width = config.hidden_size
    return Architecture(
        family=config.model_type,
        spaces=spaces(
            Space("embed", width, "residual"),
            Space("normed", width, "normed"),
            Space("branch", width, "branch"),
            Space("decoded", width, "tied"),
            *heads(config.num_attention_heads, head_dim(config), config.num_key_value_heads),
            Space("mlp", config.intermediate_size, "mlp"),
            Space("vocab", config.vocab_size, "lookup"),
        ),
        stacks=(LayerStack("layers", config.num_hidden_layers, (Attention(rope=True),), period=PATTERN),),
        params=params,
        epsilon=NormEpsilon(config.rms_norm_eps, "rms_norm_eps"),
        rms=True,
        **options,
    )


def causal_lm(config: PretrainedConfig) -> Architecture:
    """The decoder and its head, tied to the token embedding unless the config says otherwise. Raises UserError."""
    tied = config.tie_word_embeddings
    head, aliases = lm_head(tied, "model.embed_tokens")
    return _architecture(config, (*_decoder("model.", config, tied), *head), aliases=aliases)


def decoder(config: PretrainedConfig) -> Architecture:
    """The bare decoder. Raises UserError."""
    params, ignored = _decoder("", config, tied=False), ("lm_head.weight",)
    return _architecture(config, params, outputs={"last_hidden_state": "normed"}, ignored=ignored)


def configure(config_class: Callable[..., PretrainedConfig], sizes: ModelSizes, facts: Facts) -> PretrainedConfig:
    """Scores are divided by the root of head_dim, as in most published models. Raises UserError."""
    config = llama.configure(config_class, sizes, facts)
    config.update({"query_pre_attn_scalar": head_dim(config)})
    return config


def rms_norm(module: Gemma2RMSNorm, x: Tensor) -> Tensor:
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
GEMMA2 = Family(
    name="gemma2",
    data="text",
    config_class=Gemma2Config,
    heads=(Head("causal-lm", Gemma2ForCausalLM, causal_lm), Head("encoder", Gemma2Model, decoder)),
    keys=KEYS,
    resize=llama.resize,
    positions=causal_positions,
    probe_inputs=text_probe,
    configure=partial(configure, Gemma2Config),
    norms=(NormModule(Gemma2RMSNorm, "eps", rms_norm),),
    optional_sizes=("kv_heads", "head_dim", "tied", "rope_theta"),
    windows=llama.windows_by_type,
)
