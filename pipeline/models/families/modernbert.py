"""ModernBERT as `transformers` has it: pre-LN behind an embedding norm, rotary positions, GeGLU, projections fused, and
layers of two kinds, of which every third attends to all tokens.

The norm behind the embedding writes the residual stream, and the first layer's attention reads the stream itself. The
layers' kinds are `layer_types` in transformers 5 and one number in transformers 4, and so are the rotary positions'
bases; a written config has both.
"""

import math
from functools import partial
from typing import Any

from torch import Tensor
from transformers import ModernBertConfig, ModernBertForMaskedLM, ModernBertModel, PretrainedConfig
from transformers.modeling_outputs import MaskedLMOutput

from pipeline.config.model_sizes import ModelSizes
from pipeline.models.architecture import (
    FIRST_LAYER,
    LATER_LAYERS,
    Architecture,
    Attention,
    LayerStack,
    NormEpsilon,
    ParamSpec,
    Space,
    embedding,
    heads,
    linear,
    norm,
    of_layers,
    spaces,
    with_std,
    writes,
)
from pipeline.models.families.bert import chosen
from pipeline.models.family import (
    ROPE,
    ROPE_AS_WRITTEN,
    TEXT_KEYS,
    Facts,
    Family,
    Head,
    head_dim,
    masked_keys,
    text_positions,
    text_probe,
)
from pipeline.models.layer_types import (
    FULL_ATTENTION,
    LAYER_TYPES,
    LAYER_TYPES_STATED,
    SLIDING_ATTENTION,
    LayerPattern,
    windows_of,
)

EVERY = "global_attn_every_n_layers"
PATTERN = LayerPattern(
    full=0,
    usual=3,
    period_key=EVERY,
    types_read=False,
    bases={FULL_ATTENTION: "global_rope_theta", SLIDING_ATTENTION: "local_rope_theta"},
    scaled=(FULL_ATTENTION, SLIDING_ATTENTION),
)


class ModernBertForScoredMaskedLM(ModernBertForMaskedLM):
    """`ModernBertForMaskedLM` with the same parameters; the head runs on a fixed number of positions per sequence."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, masked_positions: Tensor | None = None, **_: Any
    ) -> MaskedLMOutput:
        """Logits (B, M, V) at `masked_positions` (B, M), or (B, S, V) everywhere when none are given."""
        hidden_BSD = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        return MaskedLMOutput(logits=self.decoder(self.head(chosen(hidden_BSD, masked_positions))))

    @classmethod
    def is_custom_code(cls) -> bool:
        """Its weights start as those of its base class do, by which all are drawn."""
        return False


def truncated_std(config: ModernBertConfig) -> float:
    """The standard deviation of normal numbers of which those beyond `initializer_cutoff_factor` are drawn again."""
    cutoff = config.initializer_cutoff_factor or 3.0
    density = math.exp(-(cutoff**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cutoff * density / math.erf(cutoff / math.sqrt(2)))


def branch_end_std(config: ModernBertConfig) -> float:
    """The same of what ends a branch, and of the head."""
    return truncated_std(config) / math.sqrt(2 * config.num_hidden_layers)


def _encoder(prefix: str, config: ModernBertConfig, tied: bool) -> tuple[ParamSpec, ...]:
    """Embedding, its norm, layers, and the final norm."""
    layer, fused, gated = prefix + "layers.{i}.", writes("query", "key", "value"), writes("mlp", "mlp")
    bias, inside, end = config.attention_bias, truncated_std(config), branch_end_std(config)
    normed = partial(norm, bias=config.norm_bias)
    return (
        *with_std(inside, embedding(prefix + "embeddings.tok_embeddings", "vocab", "embed", tied=tied, decay=tied)),
        *normed(prefix + "embeddings.norm", "embed", "embed"),
        *of_layers(LATER_LAYERS, normed(layer + "attn_norm", "embed", "normed")),
        *of_layers(FIRST_LAYER, with_std(inside, linear(layer + "attn.Wqkv", "embed", fused, bias=bias))),
        *of_layers(LATER_LAYERS, with_std(inside, linear(layer + "attn.Wqkv", "normed", fused, bias=bias))),
        *with_std(end, linear(layer + "attn.Wo", "context", "embed", bias=bias)),
        *normed(layer + "mlp_norm", "embed", "normed"),
        *with_std(inside, linear(layer + "mlp.Wi", "normed", gated, bias=config.mlp_bias)),
        *with_std(end, linear(layer + "mlp.Wo", "mlp", "embed", bias=config.mlp_bias)),
        *normed(prefix + "final_norm", "embed", "normed"),
    )


def _architecture(
    config: ModernBertConfig, params: tuple[ParamSpec, ...], *more: Space, **options: Any
) -> Architecture:
    return Architecture(
        family="modernbert",
        spaces=spaces(
            Space("embed", config.hidden_size, "residual"),
            Space("normed", config.hidden_size, "normed"),
            *more,
            *heads(config.num_attention_heads, head_dim(config)),
            Space("mlp", config.intermediate_size, "mlp"),
            Space("vocab", config.vocab_size, "lookup"),
        ),
        stacks=(LayerStack("layers", config.num_hidden_layers, (Attention(rope=True),), PATTERN.period(config)),),
        params=params,
        epsilon=NormEpsilon(config.norm_eps, "norm_eps"),
        **options,
    )


def masked_lm(config: ModernBertConfig) -> Architecture:
    """The encoder, dense -> activation -> norm, and a decoder, tied to the token embedding or not."""
    tied, width = config.tie_word_embeddings, config.hidden_size
    decoder = with_std(branch_end_std(config), linear("decoder", "decoded", "vocab", counted_per="scored"))
    params = (
        *_encoder("model.", config, tied),
        *with_std(
            branch_end_std(config),
            linear("head.dense", "normed", "transformed", counted_per="scored", bias=config.classifier_bias),
        ),
        *norm("head.norm", "transformed", "decoded", bias=config.norm_bias),
        *(() if tied else decoder[:1]),
        *(decoder[1:] if config.decoder_bias else ()),
    )
    aliases = {"decoder.weight": "model.embeddings.tok_embeddings.weight"} if tied else {}
    ends = Space("transformed", width, "inner"), Space("decoded", width, "tied" if tied else "normed")
    return _architecture(config, params, *ends, aliases=aliases)


def encoder(config: ModernBertConfig) -> Architecture:
    """The bare encoder."""
    outputs, others = {"last_hidden_state": "normed"}, ("head.*", "decoder.*")
    return _architecture(config, _encoder("", config, tied=False), outputs=outputs, ignored=others)


def windows(config: ModernBertConfig) -> tuple[int | None, ...]:
    """To each side, the token itself included."""
    return windows_of(config, config.local_attention // 2 + 1)


def resize(sizes: ModelSizes) -> dict[str, Any]:
    return {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp_units,
        **dict.fromkeys(("attention_dropout", "embedding_dropout", "mlp_dropout"), sizes.dropout),
        "initializer_range": sizes.init,
    }


def configure(sizes: ModelSizes, facts: Facts) -> PretrainedConfig:
    """Raises UserError for data that are no text, or have no mask token."""
    special = facts.get("special", {})
    begins, ends = special.get("cls"), special.get("sep")
    return ModernBertConfig(
        **masked_keys(sizes, facts),
        norm_eps=sizes.eps,
        bos_token_id=begins,
        cls_token_id=begins,
        eos_token_id=ends,
        sep_token_id=ends,
        **resize(sizes),
    )


FAMILY = Family(
    name="modernbert",
    data="text",
    config_class=ModernBertConfig,
    heads=(Head("masked-lm", ModernBertForScoredMaskedLM, masked_lm), Head("encoder", ModernBertModel, encoder)),
    keys=TEXT_KEYS.extended(
        sizes=("head_dim",),
        undeclared=("head_dim",),
        training=(
            "attention_dropout",
            "classifier_dropout",
            "deterministic_flash_attn",
            "embedding_dropout",
            "initializer_cutoff_factor",
            "initializer_range",
            "mlp_dropout",
            "sparse_pred_ignore_index",
            "sparse_prediction",
        ),
        kept=(
            EVERY,
            LAYER_TYPES,
            LAYER_TYPES_STATED,
            ROPE_AS_WRITTEN,
            "layer_norm_eps",
            "norm_eps",
            "position_embedding_type",
            "reference_compile",
            "repad_logits_with_grad",
        ),
        function=(
            "attention_bias",
            "classifier_activation",
            "classifier_bias",
            "classifier_pooling",
            "decoder_bias",
            "hidden_activation",
            "local_attention",
            "mlp_bias",
            "norm_bias",
            ROPE,
        ),
    ),
    resize=resize,
    positions=text_positions,
    probe_inputs=text_probe,
    configure=configure,
    windows=windows,
    older_keys=PATTERN.older_keys,
    misread=PATTERN.misread,
    least_layers=1,
)
