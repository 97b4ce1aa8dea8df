"""BERT, RoBERTa and RoBERTa's kin (XLM-RoBERTa, CamemBERT) as `transformers` has them: post-LN, MLM transform, decoder
tied or not, scored at the masked positions only."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CamembertConfig,
    CamembertForMaskedLM,
    CamembertModel,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaModel,
)
from transformers.modeling_outputs import MaskedLMOutput

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import Architecture, ParamSpec, Space, embedding, linear, masked_lm_head, norm
from pipeline.models.family import (
    BERT_KEYS,
    Facts,
    Family,
    Head,
    bert_architecture,
    masked_config,
    positions_of,
    resized,
    segmented_text_probe,
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
        return MaskedLMOutput(logits=self.cls(chosen(hidden_BSD, masked_positions)))


class ScoredLmHead(PreTrainedModel):
    """The forward of RoBERTa and its kin in the same way."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        masked_positions: Tensor | None = None,
        **_: Any,
    ) -> MaskedLMOutput:
        """Logits (B, M, V) at `masked_positions` (B, M), or (B, S, V) everywhere when none are given."""
        hidden_BSD = self.roberta(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        return MaskedLMOutput(logits=self.lm_head(chosen(hidden_BSD, masked_positions)))


class RobertaForScoredMaskedLM(ScoredLmHead, RobertaForMaskedLM):
    pass


class XLMRobertaForScoredMaskedLM(ScoredLmHead, XLMRobertaForMaskedLM):
    pass


class CamembertForScoredMaskedLM(ScoredLmHead, CamembertForMaskedLM):
    pass


def chosen(hidden_BSD: Tensor, positions_BM: Tensor | None) -> Tensor:
    """(B, M, D): the hidden states at some positions, or all."""
    if positions_BM is None:
        return hidden_BSD
    return hidden_BSD.gather(1, positions_BM.unsqueeze(-1).expand(-1, -1, hidden_BSD.shape[-1]))


def _encoder(prefix: str, tied: bool, words: str | None = None) -> tuple[ParamSpec, ...]:
    """Embeddings and layers. The norms write the residual stream itself. words: the module of the token embedding,
    where it is another than the name says."""
    layer = prefix + "encoder.layer.{i}."
    return (
        *embedding(prefix + "embeddings.word_embeddings", "vocab", "embed", tied=tied, decay=tied, module=words),
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
    config: BertConfig,
    *,
    family: str,
    prefix: str,
    transform: str,
    transform_norm: str,
    bias: str,
    decoder: str,
    ignored: tuple[str, ...],
    head_first: bool = False,
) -> Architecture:
    """The encoder, dense -> activation -> norm, and a decoder, tied to the token embedding unless the config says
    otherwise. ignored: what else published files hold. head_first: the model's code builds its head before its encoder,
    so that what both share goes by the head's name."""
    tied, words = config.tie_word_embeddings, f"{prefix}embeddings.word_embeddings"
    head, aliases = masked_lm_head(tied, "decoded", decoder=decoder, bias=bias, embedding=words)
    params = (
        *_encoder(prefix, tied, decoder if tied and head_first else None),
        *linear(transform, "embed", "transformed", counted_per="scored"),
        *norm(transform_norm, "transformed", "decoded"),
        *head,
    )
    decoded = Space("decoded", config.hidden_size, "tied" if tied else "normed")
    inner = Space("transformed", config.hidden_size, "inner")
    doubled = {} if tied else {f"{bias}.bias": f"{decoder}.bias"}
    return bert_architecture(family, config, params, inner, decoded, aliases=aliases, doubled=doubled, ignored=ignored)


def encoder(family: str, ignored: tuple[str, ...], config: BertConfig) -> Architecture:
    """The bare encoder with its pooler."""
    params = (*_encoder("", tied=False), *linear("pooler.dense", "embed", "pooled", counted_per="sequence"))
    outputs = {"last_hidden_state": "embed", "pooler_output": "pooled"}
    return bert_architecture(
        family, config, params, Space("pooled", config.hidden_size, "pooled"), outputs=outputs, ignored=ignored
    )


BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""What files of older versions hold besides."""


def _family(
    name: str,
    config_class: type[PretrainedConfig],
    masked: type[PreTrainedModel],
    bare: type[PreTrainedModel],
    head: str,
    architecture: Callable[[Any], Architecture],
    **more: Any,
) -> Family:
    """A family with a masked language model and a bare encoder, which does not read the parameters below `head`."""
    heads = (
        Head("masked-lm", masked, architecture),
        Head("encoder", bare, partial(encoder, name, (*BUFFERS, f"{head}.*"))),
    )
    return Family(
        name=name,
        data="text",
        config_class=config_class,
        heads=heads,
        keys=BERT_KEYS,
        resize=resized,
        positions=text_positions,
        **more,
    )


BERT = _family(
    "bert",
    BertConfig,
    BertForScoredMaskedLM,
    BertModel,
    "cls",
    partial(
        masked_lm,
        family="bert",
        prefix="bert.",
        transform="cls.predictions.transform.dense",
        transform_norm="cls.predictions.transform.LayerNorm",
        bias="cls.predictions",
        decoder="cls.predictions.decoder",
        ignored=(*(f"bert.{name}" for name in BUFFERS), "bert.pooler.*", "cls.seq_relationship.*"),
    ),
    probe_inputs=segmented_text_probe,
    configure=lambda sizes, facts: masked_config(BertConfig, sizes, facts),
)
RESERVED = 2
"""Rows of RoBERTa's position table that no token takes: positions count from behind the padding token's id, 1 (or 0,
then the last row stays free)."""


def configure_roberta(
    config_class: Callable[..., PretrainedConfig], sizes: ModelSizes, facts: Facts
) -> PretrainedConfig:
    """Raises UserError for a padding token behind which no position could begin."""
    pad = facts.get("special", {}).get("pad", RESERVED - 1)
    if pad >= RESERVED:
        raise UserError(
            f"RoBERTa counts positions from behind the padding token's id, and that of the data's tokenizer is {pad}; "
            "choose a tokenizer whose padding token is 0 or 1, or another family"
        )
    config = masked_config(config_class, sizes, {**facts, "positions": positions_of(facts) + RESERVED})
    config.update({"pad_token_id": pad})
    return config


def _roberta(
    name: str,
    config_class: type[PretrainedConfig],
    masked: type[PreTrainedModel],
    bare: type[PreTrainedModel],
    head_first: bool = False,
) -> Family:
    """RoBERTa, and what differs from it in its vocabulary alone."""
    architecture = partial(
        masked_lm,
        family=name,
        prefix="roberta.",
        transform="lm_head.dense",
        transform_norm="lm_head.layer_norm",
        bias="lm_head",
        decoder="lm_head.decoder",
        ignored=(*(f"roberta.{buffer}" for buffer in BUFFERS), "roberta.pooler.*"),
        head_first=head_first,
    )
    return _family(
        name,
        config_class,
        masked,
        bare,
        "lm_head",
        architecture,
        probe_inputs=partial(segmented_text_probe, reserved=RESERVED),
        configure=partial(configure_roberta, config_class),
        reserved=RESERVED,
    )


ROBERTA = _roberta("roberta", RobertaConfig, RobertaForScoredMaskedLM, RobertaModel)
XLM_ROBERTA = _roberta("xlm-roberta", XLMRobertaConfig, XLMRobertaForScoredMaskedLM, XLMRobertaModel, True)
CAMEMBERT = _roberta("camembert", CamembertConfig, CamembertForScoredMaskedLM, CamembertModel, True)
