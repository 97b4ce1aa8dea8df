"""DistilBERT as `transformers` has it: post-LN without token types, MLM transform, decoder tied or not, scored at the
masked positions only; classifiers of sequences and of tokens, and what answers questions, which grow and do not train.

The epsilon of its norms is a constant of the code. A table of sinusoidal positions is a parameter like a learned one,
of as many rows as it has.
"""

from functools import partial

from torch import Tensor
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)

from pipeline.models.architecture import ParamSpec, Space
from pipeline.models.config_keys import COMMON_KEYS
from pipeline.models.fresh_configs import resized
from pipeline.models.probes import text_probe
from pipeline.models.rows import embedding, linear, norm
from pipeline.models.scored_masked_lm import ScoredMaskedLM
from pipeline.models.text_encoders import Trunk
from pipeline.models.text_heads import Decoder, dense_head, downstream_heads, masked_lm, text_family, transformed


class DistilBertForScoredMaskedLM(ScoredMaskedLM, DistilBertForMaskedLM):
    def predictions(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.vocab_projector(self.vocab_layer_norm(self.activation(self.vocab_transform(hidden))))
        return logits


def parameters(config: DistilBertConfig, prefix: str, tied: bool) -> tuple[ParamSpec, ...]:
    """Embeddings and layers. The norms write the residual stream itself."""
    layer = prefix + "transformer.layer.{i}."
    return (
        *embedding(prefix + "embeddings.word_embeddings", "vocab", "embed", tied=tied, decay=tied),
        *embedding(prefix + "embeddings.position_embeddings", "positions", "embed"),
        *norm(prefix + "embeddings.LayerNorm", "embed", "embed"),
        *linear(layer + "attention.q_lin", "embed", "query"),
        *linear(layer + "attention.k_lin", "embed", "key"),
        *linear(layer + "attention.v_lin", "embed", "value"),
        *linear(layer + "attention.out_lin", "context", "embed"),
        *norm(layer + "sa_layer_norm", "embed", "embed"),
        *linear(layer + "ffn.lin1", "embed", "mlp"),
        *linear(layer + "ffn.lin2", "mlp", "embed"),
        *norm(layer + "output_layer_norm", "embed", "embed"),
    )


def positions(config: DistilBertConfig) -> tuple[Space, ...]:
    return (Space("positions", config.max_position_embeddings, "fixed" if config.sinusoidal_pos_embds else "lookup"),)


TRUNK = Trunk(
    family="distilbert",
    prefix="distilbert.",
    parameters=parameters,
    lookups=positions,
    mlp_size_key="hidden_dim",
    epsilon=1e-12,
    buffers=("embeddings.position_ids",),
    head_modules=(
        "vocab_transform",
        "vocab_layer_norm",
        "vocab_projector",
        "pre_classifier",
        "classifier",
        "qa_outputs",
    ),
)
TRANSFORM = transformed("vocab_transform", "vocab_layer_norm")
FAMILY = text_family(
    TRUNK,
    DistilBertConfig,
    (
        masked_lm(TRUNK, DistilBertForScoredMaskedLM, TRANSFORM, Decoder("vocab_projector")),
        *downstream_heads(
            TRUNK,
            DistilBertForSequenceClassification,
            DistilBertForTokenClassification,
            DistilBertForQuestionAnswering,
            DistilBertModel,
            of_texts=dense_head("pre_classifier", "classifier"),
        ),
    ),
    keys=COMMON_KEYS.extended(
        sizes=("dim", "n_layers", "n_heads", "hidden_dim", "vocab_size", "max_position_embeddings"),
        training=("attention_dropout", "dropout", "initializer_range", "qa_dropout", "seq_classif_dropout"),
        kept=("tie_weights_",),
        function=("activation", "sinusoidal_pos_embds"),
    ),
    resize=partial(
        resized,
        hidden_size="dim",
        num_hidden_layers="n_layers",
        num_attention_heads="n_heads",
        intermediate_size="hidden_dim",
        hidden_dropout_prob="dropout",
        attention_probs_dropout_prob="attention_dropout",
    ),
    probe_inputs=text_probe,
)
