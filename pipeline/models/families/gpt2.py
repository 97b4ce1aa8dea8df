"""GPT-2 as `transformers` has it: pre-LN, Conv1D weights (in, out), query, key and value fused, decoder tied or not."""

import math
from typing import Any

from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from pipeline.config.model_sizes import ModelSizes
from pipeline.models.architecture import Architecture, LayerStack, NormEpsilon, ParamSpec, Space, heads, spaces, writes
from pipeline.models.config_keys import COMMON_KEYS
from pipeline.models.family import Family, Head
from pipeline.models.fresh_configs import Facts, causal_keys, positions_of, stated
from pipeline.models.probes import causal_positions, text_probe
from pipeline.models.rows import embedding, linear, lm_head, norm


def _decoder(prefix: str, config: GPT2Config, tied: bool, ended: str) -> tuple[ParamSpec, ...]:
    """Embeddings, layers and the final norm, which writes the space `ended`."""
    layer, quiet = prefix + "h.{i}.", 1 / math.sqrt(2 * config.n_layer)
    return (
        *embedding(prefix + "wte", "vocab", "embed", tied=tied, decay=tied),
        *embedding(prefix + "wpe", "positions", "embed"),
        *norm(layer + "ln_1", "embed", "normed"),
        *linear(layer + "attn.c_attn", "normed", writes("query", "key", "value"), transposed=True),
        *linear(layer + "attn.c_proj", "context", "embed", transposed=True, std=quiet),
        *norm(layer + "ln_2", "embed", "normed"),
        *linear(layer + "mlp.c_fc", "normed", "mlp", transposed=True),
        *linear(layer + "mlp.c_proj", "mlp", "embed", transposed=True, std=quiet),
        *norm(prefix + "ln_f", "embed", ended),
    )


def _architecture(config: GPT2Config, params: tuple[ParamSpec, ...], **options: Any) -> Architecture:
    width = config.n_embd
    return Architecture(
        family="gpt2",
        spaces=spaces(
            Space("embed", width, "residual"),
            Space("normed", width, "normed"),
            Space("decoded", width, "tied"),
            *heads(config.n_head, width // config.n_head),
            Space("mlp", config.n_inner or 4 * width, "mlp"),
            Space("vocab", config.vocab_size, "lookup"),
            Space("positions", config.n_positions, "lookup"),
        ),
        stacks=(LayerStack("layers", config.n_layer),),
        params=params,
        epsilon=NormEpsilon(config.layer_norm_epsilon, "layer_norm_epsilon"),
        **options,
    )


def causal_lm(config: GPT2Config) -> Architecture:
    """The decoder and its head, tied to the token embedding unless the config says otherwise."""
    tied = config.tie_word_embeddings
    head, aliases = lm_head(tied, "transformer.wte")
    params = (*_decoder("transformer.", config, tied, "decoded" if tied else "normed"), *head)
    return _architecture(
        config, params, aliases=aliases, ignored=("transformer.h.*.attn.bias", "transformer.h.*.attn.masked_bias")
    )


def decoder(config: GPT2Config) -> Architecture:
    """The bare decoder."""
    params = _decoder("", config, tied=False, ended="normed")
    return _architecture(
        config,
        params,
        outputs={"last_hidden_state": "normed"},
        ignored=("h.*.attn.bias", "h.*.attn.masked_bias", "lm_head.weight"),
    )


def resize(sizes: ModelSizes) -> dict[str, Any]:
    return {
        "n_embd": sizes.hidden,
        "n_layer": sizes.layers,
        "n_head": sizes.heads,
        "n_inner": sizes.mlp_units,
        "embd_pdrop": sizes.dropout,
        "attn_pdrop": sizes.dropout,
        "resid_pdrop": sizes.dropout,
        "initializer_range": sizes.init,
        **stated(tie_word_embeddings=sizes.tied),
    }


def configure(sizes: ModelSizes, facts: Facts) -> GPT2Config:
    """Raises UserError."""
    return GPT2Config(
        **causal_keys(sizes, facts), n_positions=positions_of(facts), layer_norm_epsilon=sizes.eps, **resize(sizes)
    )


FAMILY = Family(
    name="gpt2",
    least_layers=1,  # its initialisation divides by the number of layers
    data="text",
    config_class=GPT2Config,
    heads=(Head("causal-lm", GPT2LMHeadModel, causal_lm), Head("encoder", GPT2Model, decoder)),
    keys=COMMON_KEYS.extended(
        sizes=("n_embd", "n_layer", "n_head", "n_inner", "vocab_size", "n_positions"),
        training=("attn_pdrop", "embd_pdrop", "resid_pdrop", "summary_first_dropout", "initializer_range"),
        kept=("layer_norm_epsilon", "n_ctx"),
        function=(
            "activation_function",
            "add_cross_attention",
            "reorder_and_upcast_attn",
            "scale_attn_by_inverse_layer_idx",
            "scale_attn_weights",
            "summary_activation",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ),
    ),
    resize=resize,
    positions=causal_positions,
    probe_inputs=text_probe,
    configure=configure,
    optional_sizes=("tied",),
)
