"""DistilBERT as `transformers` has it: post-LN without token types, MLM transform, decoder tied or not, scored at the
masked positions only; classifiers of sequences and of tokens, and what answers questions, which grow and do not train.

The epsilon of its norms is a constant of the code. A table of sinusoidal positions is a parameter like a learned one,
of as many rows as it has.
"""

from typing import Any

from torch import Tensor
from transformers import (
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification,
    DistilBertForTokenClassification,
    DistilBertModel,
)
from transformers.modeling_outputs import MaskedLMOutput

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import (
    Architecture,
    LayerStack,
    NormEpsilon,
    ParamSpec,
    Space,
    embedding,
    heads,
    linear,
    norm,
    spaces,
)
from pipeline.models.families.bert import chosen
from pipeline.models.family import COMMON_KEYS, Facts, Family, Head, masked_keys, text_positions, text_probe

EPSILON = 1e-12


class DistilBertForScoredMaskedLM(DistilBertForMaskedLM):
    """`DistilBertForMaskedLM` with the same parameters; the head runs on a fixed number of positions per sequence."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, masked_positions: Tensor | None = None, **_: Any
    ) -> MaskedLMOutput:
        """Logits (B, M, V) at `masked_positions` (B, M), or (B, S, V) everywhere when none are given."""
        hidden_BSD = self.distilbert(input_ids, attention_mask=attention_mask).last_hidden_state
        transformed = self.activation(self.vocab_transform(chosen(hidden_BSD, masked_positions)))
        return MaskedLMOutput(logits=self.vocab_projector(self.vocab_layer_norm(transformed)))


def _encoder(prefix: str, tied: bool = False) -> tuple[ParamSpec, ...]:
    """Embeddings and layers. The norms write the residual stream itself."""
    layer = prefix + "transformer.layer.{i}."
    projections = (("q_lin", "query"), ("k_lin", "key"), ("v_lin", "value"))
    return (
        *embedding(prefix + "embeddings.word_embeddings", "vocab", "embed", tied=tied, decay=tied),
        *embedding(prefix + "embeddings.position_embeddings", "positions", "embed"),
        *norm(prefix + "embeddings.LayerNorm", "embed", "embed"),
        *(row for name, space in projections for row in linear(f"{layer}attention.{name}", "embed", space)),
        *linear(layer + "attention.out_lin", "context", "embed"),
        *norm(layer + "sa_layer_norm", "embed", "embed"),
        *linear(layer + "ffn.lin1", "embed", "mlp"),
        *linear(layer + "ffn.lin2", "mlp", "embed"),
        *norm(layer + "output_layer_norm", "embed", "embed"),
    )


def _architecture(
    config: DistilBertConfig, params: tuple[ParamSpec, ...], *more: Space, **options: Any
) -> Architecture:
    prefix = "" if params[0].name.startswith("embeddings") else "distilbert."
    return Architecture(
        family="distilbert",
        spaces=spaces(
            Space("embed", config.dim, "residual"),
            *more,
            *heads(config.n_heads, config.dim // config.n_heads),
            Space("mlp", config.hidden_dim, "mlp"),
            Space("vocab", config.vocab_size, "lookup"),
            Space("positions", config.max_position_embeddings, "fixed" if config.sinusoidal_pos_embds else "lookup"),
        ),
        stacks=(LayerStack("layers", config.n_layers),),
        params=params,
        epsilon=NormEpsilon(EPSILON),
        ignored=(prefix + "embeddings.position_ids", *(() if prefix else ENDS)),
        **options,
    )


ENDS = (
    "vocab_transform.*",
    "vocab_layer_norm.*",
    "vocab_projector.*",
    "pre_classifier.*",
    "classifier.*",
    "qa_outputs.*",
)
"""What the bare encoder does not read."""


def masked_lm(config: DistilBertConfig) -> Architecture:
    """The encoder, dense -> activation -> norm, and a decoder with a bias of its own, tied to the token embedding
    unless the config says otherwise."""
    tied, matrix = config.tie_word_embeddings, "vocab_projector.weight"
    decoder = linear("vocab_projector", "decoded", "vocab", counted_per="scored")
    params = (
        *_encoder("distilbert.", tied),
        *linear("vocab_transform", "embed", "transformed", counted_per="scored"),
        *norm("vocab_layer_norm", "transformed", "decoded"),
        *(decoder[1:] if tied else decoder),
    )
    inner = Space("transformed", config.dim, "inner")
    decoded = Space("decoded", config.dim, "tied" if tied else "normed")
    aliases = {matrix: "distilbert.embeddings.word_embeddings.weight"} if tied else {}
    return _architecture(config, params, inner, decoded, aliases=aliases)


def encoder(config: DistilBertConfig) -> Architecture:
    """The bare encoder."""
    return _architecture(config, _encoder(""), outputs={"last_hidden_state": "embed"})


def text_classifier(config: DistilBertConfig) -> Architecture:
    """Dense -> ReLU -> dense behind the first token."""
    params = (
        *_encoder("distilbert."),
        *linear("pre_classifier", "embed", "pooled", counted_per="sequence"),
        *linear("classifier", "pooled", "classes", counted_per="sequence"),
    )
    pooled, classes = Space("pooled", config.dim, "pooled"), Space("classes", config.num_labels, "fixed")
    return _architecture(config, params, pooled, classes, outputs={"logits": "classes"})


def token_classifier(config: DistilBertConfig) -> Architecture:
    """A dense layer behind every token."""
    params = (*_encoder("distilbert."), *linear("classifier", "embed", "classes"))
    return _architecture(config, params, Space("classes", config.num_labels, "fixed"), outputs={"logits": "classes"})


def question_answering(config: DistilBertConfig) -> Architecture:
    """Two numbers for each token: how far an answer begins and ends there. Raises UserError for another number."""
    if config.num_labels != 2:
        raise UserError(f"a model that answers questions has 2 labels, for begin and end, and not {config.num_labels}")
    params = (*_encoder("distilbert."), *linear("qa_outputs", "embed", "classes"))
    classes, score = Space("classes", config.num_labels, "fixed"), Space("score", 1, "number")
    return _architecture(config, params, classes, score, outputs={"start_logits": "score", "end_logits": "score"})


def resize(sizes: ModelSizes) -> dict[str, Any]:
    return {
        "dim": sizes.hidden,
        "n_layers": sizes.layers,
        "n_heads": sizes.heads,
        "hidden_dim": sizes.mlp_units,
        "dropout": sizes.dropout,
        "attention_dropout": sizes.dropout,
        "initializer_range": sizes.init,
    }


def configure(sizes: ModelSizes, facts: Facts) -> DistilBertConfig:
    """The epsilon of its norms is a constant. Raises UserError."""
    return DistilBertConfig(**masked_keys(sizes, facts), **resize(sizes))


FAMILY = Family(
    name="distilbert",
    data="text",
    config_class=DistilBertConfig,
    heads=(
        Head("masked-lm", DistilBertForScoredMaskedLM, masked_lm),
        Head("text-classifier", DistilBertForSequenceClassification, text_classifier),
        Head("token-classifier", DistilBertForTokenClassification, token_classifier),
        Head("question-answering", DistilBertForQuestionAnswering, question_answering),
        Head("encoder", DistilBertModel, encoder),
    ),
    keys=COMMON_KEYS.extended(
        sizes=("dim", "n_layers", "n_heads", "hidden_dim", "vocab_size", "max_position_embeddings"),
        training=("attention_dropout", "dropout", "initializer_range", "qa_dropout", "seq_classif_dropout"),
        kept=("tie_weights_",),
        function=("activation", "sinusoidal_pos_embds"),
    ),
    resize=resize,
    positions=text_positions,
    probe_inputs=text_probe,
    configure=configure,
)
