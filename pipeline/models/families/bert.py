"""BERT, RoBERTa and RoBERTa's kin (XLM-RoBERTa, CamemBERT) as `transformers` has them: post-LN, MLM transform, decoder
tied or not, scored at the masked positions only."""

from dataclasses import replace
from functools import partial

from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    CamembertConfig,
    CamembertForMaskedLM,
    CamembertForQuestionAnswering,
    CamembertForSequenceClassification,
    CamembertForTokenClassification,
    CamembertModel,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
    XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaModel,
)

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import Architecture, ParamSpec, Space
from pipeline.models.family import Family, Head
from pipeline.models.fresh_configs import Facts, positions_of, resized
from pipeline.models.probes import segmented_text_probe
from pipeline.models.rows import embedding, linear, norm
from pipeline.models.scored_masked_lm import ScoredMaskedLM
from pipeline.models.text_encoders import Trunk, positions_and_types
from pipeline.models.text_heads import (
    Decoder,
    configured,
    dense_head,
    downstream_heads,
    masked_lm,
    text_family,
    transformed,
)


class BertForScoredMaskedLM(ScoredMaskedLM, BertForMaskedLM):
    scored_head = "cls"


class RobertaForScoredMaskedLM(ScoredMaskedLM, RobertaForMaskedLM):
    scored_head = "lm_head"


class XLMRobertaForScoredMaskedLM(ScoredMaskedLM, XLMRobertaForMaskedLM):
    scored_head = "lm_head"


class CamembertForScoredMaskedLM(ScoredMaskedLM, CamembertForMaskedLM):
    scored_head = "lm_head"


def parameters(config: BertConfig, prefix: str, tied: bool) -> tuple[ParamSpec, ...]:
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


TRUNK = Trunk(
    family="bert",
    prefix="bert.",
    parameters=parameters,
    lookups=positions_and_types,
    pooler=True,
    buffers=("embeddings.position_ids", "embeddings.token_type_ids"),
    head_modules=("cls", "lm_head", "classifier", "qa_outputs"),
)
NEXT = "cls.seq_relationship"
"""The head that tells whether the second text follows the first."""
MASKED = masked_lm(
    TRUNK,
    BertForScoredMaskedLM,
    transformed("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"),
    Decoder("cls.predictions.decoder", bias="cls.predictions"),
    beside=(f"{NEXT}.*",),
)
RELATIONS = Space("relations", 2, "fixed")


def next_rows() -> tuple[ParamSpec, ...]:
    return (*TRUNK.pooler_rows(TRUNK.prefix), *linear(NEXT, "pooled", "relations", counted_per="sequence"))


def next_sentence(config: BertConfig) -> Architecture:
    """BERT's second head alone, behind the pooler."""
    return TRUNK.under(config, next_rows(), {"logits": "relations"}, RELATIONS, beside=("cls.predictions.*",))


def pre_training(config: BertConfig) -> Architecture:
    """Both heads, the first of which runs at every position."""
    masked, second = MASKED.architecture(config), next_sentence(config)
    first = (replace(row, counted_per="token") if row.counted_per == "scored" else row for row in masked.params)
    return replace(
        masked,
        params=(*first, *next_rows()),
        spaces=masked.spaces | second.spaces,
        outputs={"prediction_logits": "vocab", "seq_relationship_logits": "relations"},
        ignored=tuple(name for name in second.ignored if name in masked.ignored),
    )


BERT = text_family(
    TRUNK,
    BertConfig,
    (
        MASKED,
        Head("pre-training", BertForPreTraining, pre_training),
        Head("next-sentence", BertForNextSentencePrediction, next_sentence),
        *downstream_heads(
            TRUNK,
            BertForSequenceClassification,
            BertForTokenClassification,
            BertForQuestionAnswering,
            BertModel,
            of_texts=dense_head("bert.pooler.dense", "classifier"),
        ),
    ),
)
RESERVED = 2
"""Rows of RoBERTa's position table that no token takes: positions count from behind the padding token's id, 1 (or 0,
then the last row stays free)."""


def configure_roberta(
    trunk: Trunk, config_class: type[PretrainedConfig], sizes: ModelSizes, facts: Facts
) -> PretrainedConfig:
    """Raises UserError for a padding token behind which no position could begin."""
    pad = facts.get("special", {}).get("pad", RESERVED - 1)
    if pad >= RESERVED:
        raise UserError(
            f"family '{sizes.family}' counts positions from behind the padding token's id, and that of the data's "
            f"tokenizer is {pad}; "
            "choose a tokenizer whose padding token is 0 or 1, or another family"
        )
    config = configured(trunk, config_class, resized, sizes, {**facts, "positions": positions_of(facts) + RESERVED})
    config.update({"pad_token_id": pad})
    return config


def _roberta(
    name: str,
    config_class: type[PretrainedConfig],
    masked: type[PreTrainedModel],
    *others: type[PreTrainedModel],
    built_first: bool = False,
) -> Family:
    """RoBERTa, and what differs from it in its vocabulary alone: its config's class and those of its heads, the others
    in the order of `downstream_heads`. built_first: as in `Decoder`."""
    trunk = replace(TRUNK, family=name, prefix="roberta.")
    transform = transformed("lm_head.dense", "lm_head.layer_norm")
    return text_family(
        trunk,
        config_class,
        (
            masked_lm(trunk, masked, transform, Decoder("lm_head.decoder", bias="lm_head", built_first=built_first)),
            *downstream_heads(trunk, *others, of_texts=dense_head("classifier.dense", "classifier.out_proj")),
        ),
        probe_inputs=partial(segmented_text_probe, reserved=RESERVED),
        configure=partial(configure_roberta, trunk, config_class),
        reserved=RESERVED,
    )


ROBERTA = _roberta(
    "roberta",
    RobertaConfig,
    RobertaForScoredMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaForQuestionAnswering,
    RobertaModel,
)
XLM_ROBERTA = _roberta(
    "xlm-roberta",
    XLMRobertaConfig,
    XLMRobertaForScoredMaskedLM,
    XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification,
    XLMRobertaForQuestionAnswering,
    XLMRobertaModel,
    built_first=True,
)
CAMEMBERT = _roberta(
    "camembert",
    CamembertConfig,
    CamembertForScoredMaskedLM,
    CamembertForSequenceClassification,
    CamembertForTokenClassification,
    CamembertForQuestionAnswering,
    CamembertModel,
    built_first=True,
)
