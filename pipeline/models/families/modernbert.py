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
from transformers import (
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
    PretrainedConfig,
)

from pipeline.config.model_sizes import ModelSizes
from pipeline.models.architecture import FIRST_LAYER, LATER_LAYERS, ParamSpec, head_dim_of, writes
from pipeline.models.config_keys import ROTARY_KEYS
from pipeline.models.fresh_configs import Facts, resized
from pipeline.models.layer_types import FULL_ATTENTION, SLIDING_ATTENTION, LayerPattern, windows_of
from pipeline.models.probes import text_probe
from pipeline.models.rows import embedding, linear, norm, of_layers
from pipeline.models.scored_masked_lm import ScoredMaskedLM
from pipeline.models.text_encoders import Trunk
from pipeline.models.text_heads import Decoder, configured, downstream_heads, masked_lm, text_family

EVERY = "global_attn_every_n_layers"
PATTERN = LayerPattern(
    full=0,
    usual=3,
    period_key=EVERY,
    types_read=False,
    bases={FULL_ATTENTION: "global_rope_theta", SLIDING_ATTENTION: "local_rope_theta"},
    scaled=(FULL_ATTENTION, SLIDING_ATTENTION),
)


class ModernBertForScoredMaskedLM(ScoredMaskedLM, ModernBertForMaskedLM):
    def predictions(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.decoder(self.head(hidden))
        return logits


def truncated_std(config: ModernBertConfig) -> float:
    """The standard deviation of normal numbers of which those beyond `initializer_cutoff_factor` are drawn again."""
    cutoff = config.initializer_cutoff_factor or 3.0
    density = math.exp(-(cutoff**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cutoff * density / math.erf(cutoff / math.sqrt(2)))


def branch_end_std(config: ModernBertConfig) -> float:
    """The same of what ends a branch, and of the head."""
    return truncated_std(config) / math.sqrt(2 * config.num_hidden_layers)


def classifier_std(config: ModernBertConfig) -> float:
    """The same of what gives out classes, which the code divides by the root of the width."""
    return truncated_std(config) / math.sqrt(config.hidden_size) / (config.initializer_range or 1.0)


def parameters(config: ModernBertConfig, prefix: str, tied: bool) -> tuple[ParamSpec, ...]:
    """Embedding, its norm, layers, and the final norm."""
    layer, fused, gated = prefix + "layers.{i}.", writes("query", "key", "value"), writes("mlp", "mlp")
    bias, inside, end = config.attention_bias, truncated_std(config), branch_end_std(config)
    tokens, normed = prefix + "embeddings.tok_embeddings", partial(norm, bias=config.norm_bias)
    return (
        *embedding(tokens, "vocab", "embed", tied=tied, decay=tied, std=inside),
        *normed(prefix + "embeddings.norm", "embed", "embed"),
        *of_layers(LATER_LAYERS, normed(layer + "attn_norm", "embed", "normed")),
        *of_layers(FIRST_LAYER, linear(layer + "attn.Wqkv", "embed", fused, bias=bias, std=inside)),
        *of_layers(LATER_LAYERS, linear(layer + "attn.Wqkv", "normed", fused, bias=bias, std=inside)),
        *linear(layer + "attn.Wo", "context", "embed", bias=bias, std=end),
        *normed(layer + "mlp_norm", "embed", "normed"),
        *linear(layer + "mlp.Wi", "normed", gated, bias=config.mlp_bias, std=inside),
        *linear(layer + "mlp.Wo", "mlp", "embed", bias=config.mlp_bias, std=end),
        *normed(prefix + "final_norm", "embed", "normed"),
    )


def transform(config: ModernBertConfig, counted_per: str) -> tuple[ParamSpec, ...]:
    """Dense -> activation -> norm, in front of every head."""
    bias, std = config.classifier_bias, branch_end_std(config)
    return (
        *linear("head.dense", "normed", "transformed", counted_per=counted_per, bias=bias, std=std),
        *norm("head.norm", "transformed", "decoded", bias=config.norm_bias),
    )


def classifier(config: ModernBertConfig, counted_per: str) -> tuple[ParamSpec, ...]:
    """Of sequences (of the first token, or of the mean of all) and of tokens."""
    last = linear("classifier", "decoded", "classes", counted_per=counted_per, std=classifier_std(config))
    return (*transform(config, counted_per), *last)


def windows(config: ModernBertConfig) -> tuple[int | None, ...]:
    """To each side, the token itself included."""
    return windows_of(config, config.local_attention // 2 + 1)


TRUNK = Trunk(
    family="modernbert",
    prefix="model.",
    parameters=parameters,
    output_space="normed",
    token_embedding="embeddings.tok_embeddings",
    epsilon="norm_eps",
    head_dim=head_dim_of,
    rope=True,
    pattern=PATTERN,
    head_modules=("head", "decoder", "classifier"),
)
DECODER = Decoder("decoder", has_bias=lambda config: config.decoder_bias, std=branch_end_std)


def resize(sizes: ModelSizes) -> dict[str, Any]:
    common = resized(sizes, hidden_dropout_prob="mlp_dropout", attention_probs_dropout_prob="attention_dropout")
    return {**common, "embedding_dropout": sizes.dropout}


def configure(sizes: ModelSizes, facts: Facts) -> PretrainedConfig:
    """Raises UserError for data that are no text, or have no mask token."""
    special = facts.get("special", {})
    begins = dict.fromkeys(("bos_token_id", "cls_token_id"), special.get("cls"))
    ends = dict.fromkeys(("eos_token_id", "sep_token_id"), special.get("sep"))
    return configured(TRUNK, partial(ModernBertConfig, **begins, **ends), resize, sizes, facts)


FAMILY = text_family(
    TRUNK,
    ModernBertConfig,
    (
        masked_lm(TRUNK, ModernBertForScoredMaskedLM, transform, DECODER),
        *downstream_heads(
            TRUNK,
            ModernBertForSequenceClassification,
            ModernBertForTokenClassification,
            ModernBertForQuestionAnswering,
            ModernBertModel,
            of_texts=classifier,
            of_tokens=classifier,
            of_answers=classifier,
        ),
    ),
    keys=ROTARY_KEYS.extended(
        undeclared=("head_dim",),
        training=(
            "classifier_dropout",
            "deterministic_flash_attn",
            "embedding_dropout",
            "initializer_cutoff_factor",
            "mlp_dropout",
            "sparse_pred_ignore_index",
            "sparse_prediction",
        ),
        kept=(
            EVERY,
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
        ),
    ),
    resize=resize,
    probe_inputs=text_probe,
    configure=configure,
    windows=windows,
    least_layers=1,
)
