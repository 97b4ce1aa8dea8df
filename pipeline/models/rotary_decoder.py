"""Decoders of rotary positions, RMSNorms, grouped keys and values and a gated MLP, as Llama began them: one table for
all of their families, and `Traits` for what tells one from another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models import plain_attention
from pipeline.models.architecture import (
    Architecture,
    Attention,
    LayerStack,
    NormEpsilon,
    ParamSpec,
    Space,
    head_dim_of,
    heads,
    spaces,
    writes,
)
from pipeline.models.config_keys import ROPE, ROTARY_KEYS, ConfigKeys
from pipeline.models.family import Family, Head, OptionalSize, no_windows
from pipeline.models.fresh_configs import Facts, causal_keys, positions_of, stated
from pipeline.models.layer_types import LayerPattern
from pipeline.models.probes import causal_positions, text_probe
from pipeline.models.rows import embedding, linear, lm_head, norm

ATTENTION_BIAS, MLP_BIAS, BIDIRECTIONAL = "attention_bias", "mlp_bias", "use_bidirectional_attention"
CAPS = (plain_attention.CAP, "final_logit_softcapping")
"""The keys of soft caps."""
ROTATION = "layers.*.self_attn.rotary_emb.inv_freq"
"""Buffers that older files hold."""
QKV, GATED = {"q": "query", "k": "key", "v": "value"}, {"gate": "mlp", "up": "mlp"}
"""Names of projections -> the spaces that they write."""

KEYS = ROTARY_KEYS.extended(sizes=("num_key_value_heads",), kept=("rms_norm_eps",))
"""What the configs of all these families have; that of the activation has several names."""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What tells one of these families from the others.

    family: its name. bias_keys: keys of its config that give it biases. qkv_bias: queries, keys and values have biases
    by the model's code, and what the heads give out has none. qk_norm: a norm over head_dim reads queries and keys.
    fused: one matrix writes queries, keys and values, another both halves of the gated MLP. branch_ends: norms stand at
    the ends of branches too. gain_offset: gains g are stored as g - gain_offset. scaled_embedding: token embeddings are
    multiplied by the root of the width. scores_over: the key of the number by whose root scores are divided; a fresh
    model's is head_dim. pattern: of layers of several kinds. dropout: keys of rates besides that of attention.
    """

    family: str
    bias_keys: tuple[str, ...] = ()
    qkv_bias: bool = False
    qk_norm: bool = False
    fused: bool = False
    branch_ends: bool = False
    gain_offset: float = 0.0
    scaled_embedding: bool = False
    scores_over: str | None = None
    pattern: LayerPattern | None = None
    dropout: tuple[str, ...] = ()

    @property
    def optional_sizes(self) -> tuple[OptionalSize, ...]:
        """Where each kind of layers has its own base of rotary positions, those of a fresh model are its config's."""
        bases = self.pattern.bases if self.pattern else {}
        return ("kv_heads", "head_dim", "tied") if bases else ("kv_heads", "head_dim", "tied", "rope_theta")

    def biased(self, config: PretrainedConfig, key: str) -> bool:
        """Whether a key of a config gives the model biases: one that its code does not read gives none."""
        return key in self.bias_keys and bool(getattr(config, key))

    def gain(self, name: str, reading: str, writing: str, scale: float = 1.0) -> tuple[ParamSpec, ...]:
        return norm(name, reading, writing, bias=False, offset=self.gain_offset, scale=scale)

    def branch_end(self, name: str) -> tuple[ParamSpec, ...]:
        """The norm at the end of a branch, where there is one."""
        return self.gain(name, "branch", "embed") if self.branch_ends else ()

    def projections(self, module: str, written: dict[str, str], bias: bool, fused: str) -> tuple[ParamSpec, ...]:
        """Those of one norm's output: each by itself, or in order in one matrix of the name `fused`."""
        if self.fused:
            return linear(f"{module}{fused}", "normed", writes(*written.values()), bias=bias)
        return tuple(
            row for name, space in written.items() for row in linear(f"{module}{name}_proj", "normed", space, bias=bias)
        )


def _attention(layer: str, config: PretrainedConfig, traits: Traits) -> tuple[ParamSpec, ...]:
    part, bias = f"{layer}self_attn.", traits.biased(config, ATTENTION_BIAS)
    head_norms = (*traits.gain(f"{part}q_norm", "query", "head"), *traits.gain(f"{part}k_norm", "key", "head"))
    return (
        *traits.gain(f"{layer}input_layernorm", "embed", "normed"),
        *traits.projections(part, QKV, bias or traits.qkv_bias, "qkv_proj"),
        *(head_norms if traits.qk_norm else ()),
        *linear(f"{part}o_proj", "context", "branch" if traits.branch_ends else "embed", bias=bias),
        *traits.branch_end(f"{layer}post_attention_layernorm"),
    )


def _mlp(layer: str, config: PretrainedConfig, traits: Traits) -> tuple[ParamSpec, ...]:
    part, bias = f"{layer}mlp.", traits.biased(config, MLP_BIAS)
    begin = "pre_feedforward_layernorm" if traits.branch_ends else "post_attention_layernorm"
    return (
        *traits.gain(f"{layer}{begin}", "embed", "normed"),
        *traits.projections(part, GATED, bias, "gate_up_proj"),
        *linear(f"{part}down_proj", "mlp", "branch" if traits.branch_ends else "embed", bias=bias),
        *traits.branch_end(f"{layer}post_feedforward_layernorm"),
    )


def _decoder(prefix: str, config: PretrainedConfig, traits: Traits, tied: bool) -> tuple[ParamSpec, ...]:
    """Embedding, layers and the final norm, which writes "decoded" where a tied decoder reads it."""
    layer, scale = prefix + "layers.{i}.", _root_of_width(config) if traits.scaled_embedding else 1.0
    ended, undone = ("decoded", 1 / scale) if tied else ("normed", 1.0)
    return (
        *embedding(f"{prefix}embed_tokens", "vocab", "embed", tied=tied, decay=tied, scale=scale),
        *_attention(layer, config, traits),
        *_mlp(layer, config, traits),
        *traits.gain(f"{prefix}norm", "embed", ended, scale=undone),
    )


def _root_of_width(config: PretrainedConfig) -> float:
    """As the models' code holds it, in float32."""
    return float(torch.tensor(config.hidden_size**0.5, dtype=torch.float32))


def _architecture(
    traits: Traits, config: PretrainedConfig, params: tuple[ParamSpec, ...], **options: Any
) -> Architecture:
    """Raises UserError."""
    _require_supported(config)
    width, attention = config.hidden_size, Attention(rope=True, qk_norm=traits.qk_norm)
    groups = config.num_key_value_heads or config.num_attention_heads
    period = traits.pattern.period(config) if traits.pattern else 1
    return Architecture(
        family=traits.family,
        spaces=spaces(
            Space("embed", width, "residual"),
            Space("normed", width, "normed"),
            *([Space("branch", width, "branch")] if traits.branch_ends else []),
            Space("decoded", width, "tied"),
            *heads(config.num_attention_heads, head_dim_of(config), groups),
            *([Space("head", head_dim_of(config), "fixed")] if traits.qk_norm else []),
            Space("mlp", config.intermediate_size, "mlp"),
            Space("vocab", config.vocab_size, "lookup"),
        ),
        stacks=(LayerStack("layers", config.num_hidden_layers, (attention,), period),),
        params=params,
        epsilon=NormEpsilon(config.rms_norm_eps, "rms_norm_eps"),
        rms=True,
        **options,
    )


def _require_supported(config: PretrainedConfig) -> None:
    """Raises UserError."""
    if getattr(config, BIDIRECTIONAL, None):
        raise UserError(
            f"'{config.model_type}' with {BIDIRECTIONAL} is not supported: tokens would attend to those "
            "behind them, and the model is trained to predict those; choose a causal one"
        )
    for cap in CAPS:
        if getattr(config, cap, None) == 0:
            raise UserError(f"{cap} is 0, by which the model's code divides; null is no cap")


def causal_lm(traits: Traits, config: PretrainedConfig) -> Architecture:
    """The decoder and its head, tied to the token embedding or not. Raises UserError."""
    tied = config.tie_word_embeddings
    head, aliases = lm_head(tied, "model.embed_tokens")
    params = (*_decoder("model.", config, traits, tied), *head)
    return _architecture(traits, config, params, aliases=aliases, ignored=(f"model.{ROTATION}",))


def decoder(traits: Traits, config: PretrainedConfig) -> Architecture:
    """The bare decoder. Raises UserError."""
    params, ignored = _decoder("", config, traits, tied=False), (ROTATION, "lm_head.weight")
    return _architecture(traits, config, params, outputs={"last_hidden_state": "normed"}, ignored=ignored)


def resize(traits: Traits, sizes: ModelSizes) -> dict[str, Any]:
    rotates = "rope_theta" in traits.optional_sizes and sizes.rope_theta is not None
    rotation = {"rope_type": "default", "rope_theta": sizes.rope_theta} if rotates else None
    return {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads or sizes.heads,
        "head_dim": _size_of_head(sizes),
        "intermediate_size": sizes.mlp_units,
        **dict.fromkeys(("attention_dropout", *traits.dropout), sizes.dropout),
        "initializer_range": sizes.init,
        **stated(tie_word_embeddings=sizes.tied, **{ROPE: rotation}),
    }


def _size_of_head(sizes: ModelSizes) -> int:
    return sizes.head_dim or sizes.hidden // sizes.heads


def configure(
    traits: Traits, config_class: Callable[..., PretrainedConfig], sizes: ModelSizes, facts: Facts
) -> PretrainedConfig:
    """Raises UserError for sizes that rotary positions and groups of heads cannot have."""
    if (size := _size_of_head(sizes)) % 2:
        raise UserError(f"rotary positions turn pairs, and a head has {size} entries; choose an even head_dim")
    if sizes.heads % (sizes.kv_heads or sizes.heads):
        raise UserError(f"heads {sizes.heads} is no multiple of kv_heads {sizes.kv_heads}; choose a divisor")
    return config_class(
        **causal_keys(sizes, facts),
        max_position_embeddings=positions_of(facts),
        rms_norm_eps=sizes.eps,
        **({traits.scores_over: size} if traits.scores_over else {}),
        **resize(traits, sizes),
    )


def family(
    traits: Traits,
    config_class: type[PretrainedConfig],
    causal: type[PreTrainedModel],
    bare: type[PreTrainedModel],
    keys: ConfigKeys,
    windows: Callable[[Any], tuple[int | None, ...]] = no_windows,
) -> Family:
    """causal, bare: its models with the head of a causal language model, and without."""
    return Family(
        name=traits.family,
        data="text",
        config_class=config_class,
        heads=(Head("causal-lm", causal, partial(causal_lm, traits)), Head("encoder", bare, partial(decoder, traits))),
        keys=keys,
        resize=partial(resize, traits),
        positions=causal_positions,
        probe_inputs=text_probe,
        configure=partial(configure, traits, config_class),
        optional_sizes=traits.optional_sizes,
        windows=windows,
        pattern=traits.pattern,
    )
