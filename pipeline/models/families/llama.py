"""Llama, Mistral, Qwen2, Qwen3 and Phi-3 as `transformers` has them: RMSNorm, rotary positions, SwiGLU, grouped keys
and values.

Qwen2's queries, keys and values have biases whatever its config says. Qwen3 has a norm over head_dim in front of the
rotary positions of queries and keys. Phi-3 has its projections fused, and drops what its branches add.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
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
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

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
    writes,
)
from pipeline.models.family import (
    LAYER_TYPES,
    LAYER_TYPES_STATED,
    ROPE,
    ROPE_AS_WRITTEN,
    SLIDING_ATTENTION,
    TEXT_KEYS,
    ConfigKeys,
    Facts,
    Family,
    Head,
    NormModule,
    causal_keys,
    causal_positions,
    head_dim,
    no_windows,
    positions_of,
    stated,
    text_probe,
)

BIASES = ("attention_bias", "mlp_bias")
"""Llama's keys of biases: of what attention and the MLP consist of."""


@dataclass(frozen=True)
class Traits:
    """What tells one of these families from the others. bias_keys: keys of its config that give it biases. qk_norm: a
    norm over head_dim reads queries and keys. qkv_bias: queries, keys and values have biases by the model's code, and
    what the heads give out has none. fused: one matrix writes queries, keys and values, another both halves of the
    gated MLP. dropout: keys of rates besides that of attention.
    """

    family: str
    bias_keys: tuple[str, ...] = ()
    qk_norm: bool = False
    qkv_bias: bool = False
    fused: bool = False
    dropout: tuple[str, ...] = ()

    def says(self, config: PretrainedConfig, key: str) -> bool:
        """Whether a key of a config gives the model biases: one that its code does not read gives none."""
        return key in self.bias_keys and bool(getattr(config, key))


QKV, GATED = {"q": "query", "k": "key", "v": "value"}, {"gate": "mlp", "up": "mlp"}


def _decoder(prefix: str, config: PretrainedConfig, traits: Traits, tied: bool, ended: str) -> tuple[ParamSpec, ...]:
    """Embedding, layers and the final norm, which writes the space `ended`."""
    layer, bias, mlp_bias = prefix + "layers.{i}.", *(traits.says(config, key) for key in BIASES)
    head_norms = [
        row
        for name in ("q", "k")
        for row in norm(f"{layer}self_attn.{name}_norm", "query" if name == "q" else "key", "head", bias=False)
    ]
    return (
        *embedding(prefix + "embed_tokens", "vocab", "embed", tied=tied, decay=tied),
        *norm(layer + "input_layernorm", "embed", "normed", bias=False),
        *_several(f"{layer}self_attn.", QKV, bias or traits.qkv_bias, "qkv_proj" if traits.fused else None),
        *(head_norms if traits.qk_norm else ()),
        *linear(layer + "self_attn.o_proj", "context", "embed", bias=bias),
        *norm(layer + "post_attention_layernorm", "embed", "normed", bias=False),
        *_several(f"{layer}mlp.", GATED, mlp_bias, "gate_up_proj" if traits.fused else None),
        *linear(layer + "mlp.down_proj", "mlp", "embed", bias=mlp_bias),
        *norm(prefix + "norm", "embed", ended, bias=False),
    )


def _several(module: str, written: dict[str, str], bias: bool, fused: str | None) -> tuple[ParamSpec, ...]:
    """Projections of one norm's output, name -> the space that is written: each by itself, or in order in one matrix
    of the name `fused`."""
    if fused:
        return linear(f"{module}{fused}", "normed", writes(*written.values()), bias=bias)
    return tuple(
        row for name, space in written.items() for row in linear(f"{module}{name}_proj", "normed", space, bias=bias)
    )


def _architecture(
    traits: Traits, config: PretrainedConfig, params: tuple[ParamSpec, ...], **options: Any
) -> Architecture:
    width = config.hidden_size
    groups = config.num_key_value_heads or config.num_attention_heads
    return Architecture(
        family=traits.family,
        spaces=spaces(
            Space("embed", width, "residual"),
            Space("normed", width, "normed"),
            Space("decoded", width, "tied"),
            *heads(config.num_attention_heads, head_dim(config), groups),
            Space("mlp", config.intermediate_size, "mlp"),
            Space("vocab", config.vocab_size, "lookup"),
            *([Space("head", head_dim(config), "fixed")] if traits.qk_norm else []),
        ),
        stacks=(LayerStack("layers", config.num_hidden_layers, (Attention(rope=True, qk_norm=traits.qk_norm),)),),
        params=params,
        epsilon=NormEpsilon(config.rms_norm_eps, "rms_norm_eps"),
        rms=True,
        **options,
    )


def causal_lm(traits: Traits, config: PretrainedConfig) -> Architecture:
    """The decoder and its head, tied to the token embedding or not."""
    tied = config.tie_word_embeddings
    head, aliases = lm_head(tied, "model.embed_tokens")
    params = (*_decoder("model.", config, traits, tied, "decoded" if tied else "normed"), *head)
    return _architecture(
        traits, config, params, aliases=aliases, ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",)
    )


def decoder(traits: Traits, config: PretrainedConfig) -> Architecture:
    """The bare decoder."""
    params = _decoder("", config, traits, tied=False, ended="normed")
    ignored = ("layers.*.self_attn.rotary_emb.inv_freq", "lm_head.weight")
    return _architecture(traits, config, params, outputs={"last_hidden_state": "normed"}, ignored=ignored)


def resize(sizes: ModelSizes, dropout: tuple[str, ...] = ()) -> dict[str, Any]:
    """dropout: keys of rates besides that of attention."""
    return {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads or sizes.heads,
        "head_dim": sizes.head_dim or sizes.hidden // sizes.heads,
        "intermediate_size": sizes.mlp_units,
        **dict.fromkeys(("attention_dropout", *dropout), sizes.dropout),
        "initializer_range": sizes.init,
        **stated(tie_word_embeddings=sizes.tied, **{ROPE: _rotation(sizes)}),
    }


def _rotation(sizes: ModelSizes) -> dict[str, Any] | None:
    return None if sizes.rope_theta is None else {"rope_type": "default", "rope_theta": sizes.rope_theta}


def configure(
    config_class: Callable[..., PretrainedConfig], sizes: ModelSizes, facts: Facts, dropout: tuple[str, ...] = ()
) -> PretrainedConfig:
    """dropout: as in `resize`. Raises UserError for sizes that rotary positions and groups of heads cannot have."""
    if (size := sizes.head_dim or sizes.hidden // sizes.heads) % 2:
        raise UserError(f"rotary positions turn pairs, and a head has {size} entries; choose an even head_dim")
    if sizes.heads % (sizes.kv_heads or sizes.heads):
        raise UserError(f"heads {sizes.heads} is no multiple of kv_heads {sizes.kv_heads}; choose a divisor")
    return config_class(
        **causal_keys(sizes, facts),
        max_position_embeddings=positions_of(facts),
        rms_norm_eps=sizes.eps,
        **resize(sizes, dropout),
    )


def rms_norm(module: LlamaRMSNorm | MistralRMSNorm | Qwen2RMSNorm | Qwen3RMSNorm | Phi3RMSNorm, x: Tensor) -> Tensor:
    """The norms of `transformers` without their cast to float32."""
    scale: Tensor = torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)
    normed: Tensor = module.weight * x * scale
    return normed


def windows_everywhere(config: MistralConfig | Phi3Config) -> tuple[int | None, ...]:
    """Mistral and Phi-3: all layers have the window, if there is one."""
    return tuple(config.sliding_window for _ in range(config.num_hidden_layers))


def windows_by_type(config: Qwen2Config | Qwen3Config) -> tuple[int | None, ...]:
    """Qwen: the layers have it whose type says so."""
    return tuple(config.sliding_window if kind == SLIDING_ATTENTION else None for kind in config.layer_types)


KEYS_OF_ALL = TEXT_KEYS.extended(
    sizes=("num_key_value_heads", "head_dim"),
    training=("attention_dropout", "initializer_range"),
    kept=(LAYER_TYPES, LAYER_TYPES_STATED, "rms_norm_eps", ROPE_AS_WRITTEN),
    function=(ROPE,),
)
"""Gemma's too, whose configs name the activation otherwise."""
KEYS = KEYS_OF_ALL.extended(function=("hidden_act",))


def _family(
    traits: Traits,
    config_class: type[PretrainedConfig],
    causal: type[PreTrainedModel],
    bare: type[PreTrainedModel],
    norm_class: type[nn.Module],
    keys: ConfigKeys,
    windows: Callable[[Any], tuple[int | None, ...]] = no_windows,
) -> Family:
    ends = (Head("causal-lm", causal, partial(causal_lm, traits)), Head("encoder", bare, partial(decoder, traits)))
    return Family(
        name=traits.family,
        data="text",
        config_class=config_class,
        heads=ends,
        keys=keys,
        resize=partial(resize, dropout=traits.dropout),
        positions=causal_positions,
        probe_inputs=text_probe,
        configure=partial(configure, config_class, dropout=traits.dropout),
        norms=(NormModule(norm_class, "variance_epsilon", rms_norm),),
        optional_sizes=("kv_heads", "head_dim", "tied", "rope_theta"),
        windows=windows,
    )


LLAMA = _family(
    Traits("llama", BIASES),
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    LlamaRMSNorm,
    KEYS.extended(function=(*BIASES, "pretraining_tp")),
)
MISTRAL = _family(
    Traits("mistral"),
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    MistralRMSNorm,
    KEYS.extended(function=("sliding_window",)),
    windows=windows_everywhere,
)
QWEN_KEYS = KEYS.extended(kept=("max_window_layers",), function=("sliding_window", "use_sliding_window"))
QWEN2 = _family(
    Traits("qwen2", qkv_bias=True),
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen2RMSNorm,
    QWEN_KEYS.extended(undeclared=("head_dim",)),
    windows=windows_by_type,
)
QWEN3 = _family(
    Traits("qwen3", BIASES[:1], qk_norm=True),
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3RMSNorm,
    QWEN_KEYS.extended(function=("attention_bias",)),
    windows=windows_by_type,
)
PHI3 = _family(
    Traits("phi3", fused=True, dropout=("embd_pdrop", "resid_pdrop")),
    Phi3Config,
    Phi3ForCausalLM,
    Phi3Model,
    Phi3RMSNorm,
    KEYS.extended(
        training=("embd_pdrop", "resid_pdrop"),
        function=("original_max_position_embeddings", "sliding_window"),
        undeclared=("head_dim",),
    ),
    windows=windows_everywhere,
)
