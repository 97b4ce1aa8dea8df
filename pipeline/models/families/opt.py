"""OPT as `transformers` has it: pre-LN with a final norm, ReLU, learned positions, decoder tied or not.

Refused are OPT-350m's variants, post-LN and a token embedding of another width than the residual stream.
"""

from typing import Any

from transformers import OPTConfig, OPTForCausalLM, OPTModel

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import Architecture, LayerStack, NormEpsilon, ParamSpec, Space, heads, spaces
from pipeline.models.config_keys import COMMON_KEYS
from pipeline.models.family import Family, Head
from pipeline.models.fresh_configs import Facts, causal_keys, positions_of, stated
from pipeline.models.probes import causal_positions, text_probe
from pipeline.models.rows import embedding, linear, lm_head, norm

RESERVED = 2
"""Rows of the position table beside max_position_embeddings: positions count from 2, padding looks row 1 up."""

EPSILON = 1e-5
"""torch's default for nn.LayerNorm; OPT's config has no key for it."""


def _decoder(prefix: str, config: OPTConfig, tied: bool) -> tuple[ParamSpec, ...]:
    """Embeddings, layers and the final norm, which writes "decoded" where a tied decoder reads it."""
    layer, bias = prefix + "layers.{i}.", config.enable_bias
    projections = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
    return (
        *embedding(prefix + "embed_tokens", "vocab", "embed", tied=tied, decay=tied),
        *embedding(prefix + "embed_positions", "positions", "embed"),
        *_norm(layer + "self_attn_layer_norm", "normed", config),
        *(p for name, space in projections for p in linear(f"{layer}self_attn.{name}", "normed", space, bias=bias)),
        *linear(layer + "self_attn.out_proj", "context", "embed", bias=bias),
        *_norm(layer + "final_layer_norm", "normed", config),
        *linear(layer + "fc1", "normed", "mlp", bias=bias),
        *linear(layer + "fc2", "mlp", "embed", bias=bias),
        *_norm(prefix + "final_layer_norm", "decoded" if tied else "normed", config),
    )


def _norm(name: str, writing: str, config: OPTConfig) -> tuple[ParamSpec, ...]:
    return norm(name, "embed", writing) if config.layer_norm_elementwise_affine else ()


def _architecture(config: OPTConfig, params: tuple[ParamSpec, ...], tied: bool = False, **options: Any) -> Architecture:
    width = config.hidden_size
    return Architecture(
        family="opt",
        spaces=spaces(
            Space("embed", width, "residual"),
            Space("normed", width, "normed"),
            *([Space("decoded", width, "tied")] if tied else []),
            *heads(config.num_attention_heads, width // config.num_attention_heads),
            Space("mlp", config.ffn_dim, "mlp"),
            Space("vocab", config.vocab_size, "lookup"),
            Space("positions", config.max_position_embeddings + RESERVED, "lookup"),
        ),
        stacks=(LayerStack("layers", config.num_hidden_layers),),
        params=params,
        epsilon=NormEpsilon(EPSILON),
        **options,
    )


def causal_lm(config: OPTConfig) -> Architecture:
    """The decoder and its head, tied to the token embedding unless the config says otherwise. Raises UserError."""
    _require_supported(config)
    tied = config.tie_word_embeddings
    head, aliases = lm_head(tied, "model.decoder.embed_tokens")
    return _architecture(config, (*_decoder("model.decoder.", config, tied), *head), tied, aliases=aliases)


def decoder(config: OPTConfig) -> Architecture:
    """The bare decoder. Raises UserError."""
    _require_supported(config)
    params = _decoder("decoder.", config, tied=False)
    return _architecture(config, params, outputs={"last_hidden_state": "normed"}, ignored=("lm_head.weight",))


def _require_supported(config: OPTConfig) -> None:
    if not config.do_layer_norm_before:
        raise UserError(
            "OPT with do_layer_norm_before false (OPT-350m) is not supported: it is post-LN; choose another OPT"
        )
    if config.word_embed_proj_dim != config.hidden_size:
        raise UserError(
            f"OPT with word_embed_proj_dim {config.word_embed_proj_dim} other than hidden_size {config.hidden_size} "
            "(OPT-350m) is not supported: it projects token embeddings; choose another OPT"
        )
    if config._remove_final_layer_norm:
        raise UserError(
            "OPT with _remove_final_layer_norm is not supported: its decoder reads the residual stream without a norm"
        )


def resize(sizes: ModelSizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "ffn_dim": sizes.mlp_units,
        "word_embed_proj_dim": sizes.hidden,
        "dropout": sizes.dropout,
        "attention_dropout": sizes.dropout,
        "init_std": sizes.init,
        **stated(tie_word_embeddings=sizes.tied),
    }


def configure(sizes: ModelSizes, facts: Facts) -> OPTConfig:
    """The epsilon of its norms is a constant. Raises UserError."""
    return OPTConfig(**causal_keys(sizes, facts), max_position_embeddings=positions_of(facts), **resize(sizes))


FAMILY = Family(
    name="opt",
    data="text",
    config_class=OPTConfig,
    heads=(Head("causal-lm", OPTForCausalLM, causal_lm), Head("encoder", OPTModel, decoder)),
    keys=COMMON_KEYS.extended(
        sizes=(
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "ffn_dim",
            "vocab_size",
            "max_position_embeddings",
            "word_embed_proj_dim",
        ),
        training=("activation_dropout", "attention_dropout", "dropout", "init_std", "layerdrop"),
        function=(
            "_remove_final_layer_norm",
            "activation_function",
            "do_layer_norm_before",
            "enable_bias",
            "layer_norm_elementwise_affine",
        ),
        width=("word_embed_proj_dim",),
    ),
    resize=resize,
    positions=causal_positions,
    probe_inputs=text_probe,
    configure=configure,
    initializer_range="init_std",
    optional_sizes=("tied",),
)
