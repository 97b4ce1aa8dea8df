"""BERT and RoBERTa as `transformers` has them: post-LN, MLM transform. BERT is scored at the masked positions only."""

from functools import partial
from typing import Any

from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM, RobertaModel
from transformers.modeling_outputs import MaskedLMOutput

from pipeline.models.architecture import Architecture, ParamSpec, Space, embedding, linear, norm
from pipeline.models.family import (
    BERT_KEYS,
    Family,
    Head,
    bert_architecture,
    resized,
    segmented_text_probe,
    text_config,
    text_positions,
)


class BertForScoredMaskedLM(BertForMaskedLM):
    """`BertForMaskedLM` with the same parameters; the head runs on a fixed number of positions per sequence."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """Logits (B, M, V) at `masked_positions` (B, M), or (B, S, V) everywhere when none are given."""
        hidden_BSD = self.bert(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        if masked_positions is not None:
            hidden_BSD = hidden_BSD.gather(1, masked_positions.unsqueeze(-1).expand(-1, -1, hidden_BSD.shape[-1]))
        return MaskedLMOutput(logits=self.cls(hidden_BSD))


def _encoder(prefix: str, tied: bool) -> tuple[ParamSpec, ...]:
    """Embeddings and layers. The norms write the residual stream itself."""
    layer = prefix + "encoder.layer.{i}."
    return (
        *embedding(prefix + "embeddings.word_embeddings", "vocab", "embed", tied=tied, decay=tied),
        *embedding(prefix + "embeddings.position_embeddings", "positions", "embed"),
        *embedding(prefix + "embeddings.token_type_embeddings", "types", "embed"),
        *norm(prefix + "embeddings.LayerNorm", "embed", "embed"),
        *linear(layer + "attention.self.query", "embed", "query"),
        *linear(layer + "attention.self.key", "embed", "key"),
        *linear(layer + "attention.self.value", "embed", "value"),
        *linear(layer + "attention.output.dense", "context", "embed"),
        *norm(layer + "attention.output.LayerNorm", "embed", "embed"),
        *linear(layer + "intermediate.dense", "embed", "mlp"),
        *linear(layer + "output.dense", "mlp", "embed"),
        *norm(layer + "output.LayerNorm", "embed", "embed"),
    )


def masked_lm(
    family: str,
    prefix: str,
    transform: str,
    transform_norm: str,
    bias: str,
    decoder: str,
    ignored: tuple[str, ...],
    config: BertConfig,
) -> Architecture:
    """The encoder, dense -> activation -> norm, and a decoder tied to the token embedding."""
    params = (
        *_encoder(prefix, tied=True),
        *linear(transform, "embed", "transformed", counted_per="scored"),
        *norm(transform_norm, "transformed", "decoded"),
        *linear(bias, "decoded", "vocab", counted_per="scored")[1:],  # its weight is the token embedding
    )
    inner = Space("transformed", config.hidden_size, "inner"), Space("decoded", config.hidden_size, "tied")
    tied = {f"{decoder}.weight": f"{prefix}embeddings.word_embeddings.weight", f"{decoder}.bias": f"{bias}.bias"}
    return bert_architecture(family, config, params, *inner, aliases=tied, ignored=ignored)


def encoder(family: str, ignored: tuple[str, ...], config: BertConfig) -> Architecture:
    """The bare encoder with its pooler."""
    params = (*_encoder("", tied=False), *linear("pooler.dense", "embed", "pooled", counted_per="sequence"))
    outputs = {"last_hidden_state": "embed", "pooler_output": "pooled"}
    return bert_architecture(
        family, config, params, Space("pooled", config.hidden_size, "pooled"), outputs=outputs, ignored=ignored
    )


BERT_IGNORED = ("bert.embeddings.position_ids", "bert.pooler.*", "cls.seq_relationship.*")
ROBERTA_IGNORED = ("roberta.embeddings.position_ids", "roberta.pooler.*")
"""What published files hold beside a masked language model."""

ARCHITECTURES = {
    "bert": partial(
        masked_lm,
        "bert",
        "bert.",
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions",
        "cls.predictions.decoder",
        BERT_IGNORED,
    ),
    "roberta": partial(
        masked_lm,
        "roberta",
        "roberta.",
        "lm_head.dense",
        "lm_head.layer_norm",
        "lm_head",
        "lm_head.decoder",
        ROBERTA_IGNORED,
    ),
}

BERT = Family(
    "bert",
    "text",
    BertConfig,
    (
        Head("masked-lm", BertForScoredMaskedLM, ARCHITECTURES["bert"]),
        Head("encoder", BertModel, partial(encoder, "bert", ("embeddings.position_ids", "cls.*"))),
    ),
    BERT_KEYS,
    resized,
    text_positions,
    segmented_text_probe,
    lambda sizes, facts: text_config(BertConfig, sizes, facts),
)
RESERVED = 2
"""Rows of RoBERTa's position table that no token takes: positions count from behind the padding token's id, 1."""

ROBERTA = Family(
    "roberta",
    "text",
    RobertaConfig,
    (
        Head("masked-lm", RobertaForMaskedLM, ARCHITECTURES["roberta"]),
        Head("encoder", RobertaModel, partial(encoder, "roberta", ("embeddings.position_ids", "lm_head.*"))),
    ),
    BERT_KEYS,
    resized,
    text_positions,
    partial(segmented_text_probe, reserved=RESERVED),
    reserved=RESERVED,
)
