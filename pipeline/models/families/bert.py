"""BERT, RoBERTa and RoBERTa's kin (XLM-RoBERTa, CamemBERT) as `transformers` has them: post-LN, MLM transform, decoder
tied or not, scored at the masked positions only."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor
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
    has_pooler,
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
    next_sentence: bool = False,
) -> Architecture:
    """The encoder, dense -> activation -> norm, and a decoder, tied to the token embedding unless the config says
    otherwise. ignored: what else published files hold. head_first: the model's code builds its head before its encoder,
    so that what both share goes by the head's name. next_sentence: the model has BERT's second head too, and the first
    runs at every position."""
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
    more: dict[str, Any] = {"aliases": aliases, "doubled": doubled, "ignored": ignored}
    if not next_sentence:
        return bert_architecture(family, config, params, inner, decoded, **more)
    everywhere = tuple(replace(each, counted_per="token") if each.counted_per == "scored" else each for each in params)
    params = (*everywhere, *_pooler(prefix), *linear(NEXT, "pooled", "relations", counted_per="sequence"))
    ends = inner, decoded, _pooled(config), Space("relations", 2, "fixed")
    outputs = {"prediction_logits": "vocab", "seq_relationship_logits": "relations"}
    return bert_architecture(family, config, params, *ends, outputs=outputs, **more)


NEXT = "cls.seq_relationship"
"""The head that tells whether the second text follows the first."""


def _pooler(prefix: str) -> tuple[ParamSpec, ...]:
    return linear(f"{prefix}pooler.dense", "embed", "pooled", counted_per="sequence")


def _pooled(config: BertConfig) -> Space:
    return Space("pooled", config.hidden_size, "pooled")


def encoder(family: str, config: BertConfig) -> Architecture:
    """The bare encoder with its pooler, where it has one."""
    ignored = (*BUFFERS, *ENDS)
    params, outputs = _encoder("", tied=False), {"last_hidden_state": "embed"}
    if not has_pooler(config):
        return bert_architecture(family, config, params, outputs=outputs, ignored=ignored)
    params, outputs = (*params, *_pooler("")), {**outputs, "pooler_output": "pooled"}
    return bert_architecture(family, config, params, _pooled(config), outputs=outputs, ignored=ignored)


def next_sentence(config: BertConfig) -> Architecture:
    """BERT's second head alone, behind the pooler."""
    ends = (*_pooler("bert."), *linear(NEXT, "pooled", "relations", counted_per="sequence"))
    spaces = _pooled(config), Space("relations", 2, "fixed")
    return _ended("bert", "bert.", config, ends, spaces, {"logits": "relations"}, "cls.predictions.*")


def text_classifier(family: str, prefix: str, dense: str, end: str, config: BertConfig) -> Architecture:
    """A classifier of sequences: a dense layer on the first token, tanh, the classes. BERT's `dense` is its pooler."""
    ends = (
        *linear(dense, "embed", "pooled", counted_per="sequence"),
        *linear(end, "pooled", "classes", counted_per="sequence"),
    )
    beside = () if dense.startswith(prefix) else (f"{prefix}pooler.*",)
    return _ended(family, prefix, config, ends, (_pooled(config), _classes(config)), {"logits": "classes"}, *beside)


def token_classifier(family: str, prefix: str, config: BertConfig) -> Architecture:
    """A classifier of tokens, which reads the stream itself."""
    ends = linear("classifier", "embed", "classes")
    return _ended(family, prefix, config, ends, (_classes(config),), {"logits": "classes"}, f"{prefix}pooler.*")


def question_answering(family: str, prefix: str, config: BertConfig) -> Architecture:
    """Two numbers for each token: how far an answer begins and ends there. Raises UserError for another number."""
    if config.num_labels != 2:
        raise UserError(f"a model that answers questions has 2 labels, for begin and end, and not {config.num_labels}")
    ends, outputs = linear("qa_outputs", "embed", "classes"), {"start_logits": "score", "end_logits": "score"}
    spaces = _classes(config), Space("score", 1, "number")
    return _ended(family, prefix, config, ends, spaces, outputs, f"{prefix}pooler.*")


def _classes(config: BertConfig) -> Space:
    return Space("classes", config.num_labels, "fixed")


def _ended(
    family: str,
    prefix: str,
    config: BertConfig,
    ends: tuple[ParamSpec, ...],
    spaces: tuple[Space, ...],
    outputs: dict[str, str],
    *beside: str,
) -> Architecture:
    """The encoder with a head that has its own parameters alone. beside: what published files may hold besides, buffers
    apart."""
    ignored = (*(f"{prefix}{buffer}" for buffer in BUFFERS), *beside)
    params = (*_encoder(prefix, tied=False), *ends)
    return bert_architecture(family, config, params, *spaces, outputs=outputs, ignored=ignored)


BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
"""What files of older versions hold besides."""
ENDS = ("cls.*", "lm_head.*", "classifier.*", "qa_outputs.*")
"""The heads of models whose files may be read for a bare encoder."""


Classes = tuple[type[PreTrainedModel], ...]
"""Classes of models, in the order in which their heads are named."""


def _family(
    name: str,
    config_class: type[PretrainedConfig],
    prefix: str,
    classifier: tuple[str, str],
    heads: Classes,
    **more: Any,
) -> Family:
    """A family. heads: the masked language model by `masked`, the classifiers of texts and of tokens, what answers
    questions, and the bare encoder. classifier: the two dense layers of the first of these. more: `masked`, the
    architecture of the masked language model, `others`, heads that the rest do not have, and fields of `Family`."""
    architectures = {
        "masked-lm": more.pop("masked"),
        "text-classifier": partial(text_classifier, name, prefix, *classifier),
        "token-classifier": partial(token_classifier, name, prefix),
        "question-answering": partial(question_answering, name, prefix),
    }
    *ended, bare = heads
    known = (Head(head, each, build) for each, (head, build) in zip(ended, architectures.items(), strict=True))
    return Family(
        name=name,
        data="text",
        config_class=config_class,
        heads=(*known, *more.pop("others", ()), Head("encoder", bare, partial(encoder, name), pooler="pooler")),
        keys=BERT_KEYS,
        resize=resized,
        positions=text_positions,
        **more,
    )


_bert_masked = partial(
    masked_lm,
    family="bert",
    prefix="bert.",
    transform="cls.predictions.transform.dense",
    transform_norm="cls.predictions.transform.LayerNorm",
    bias="cls.predictions",
    decoder="cls.predictions.decoder",
)
_bert_buffers = tuple(f"bert.{name}" for name in BUFFERS)
BERT = _family(
    "bert",
    BertConfig,
    "bert.",
    ("bert.pooler.dense", "classifier"),
    (
        BertForScoredMaskedLM,
        BertForSequenceClassification,
        BertForTokenClassification,
        BertForQuestionAnswering,
        BertModel,
    ),
    masked=partial(_bert_masked, ignored=(*_bert_buffers, "bert.pooler.*", f"{NEXT}.*")),
    others=(
        Head("pre-training", BertForPreTraining, partial(_bert_masked, ignored=_bert_buffers, next_sentence=True)),
        Head("next-sentence", BertForNextSentencePrediction, next_sentence),
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
            f"family '{sizes.family}' counts positions from behind the padding token's id, and that of the data's "
            f"tokenizer is {pad}; "
            "choose a tokenizer whose padding token is 0 or 1, or another family"
        )
    config = masked_config(config_class, sizes, {**facts, "positions": positions_of(facts) + RESERVED})
    config.update({"pad_token_id": pad})
    return config


def _roberta(name: str, config_class: type[PretrainedConfig], heads: Classes, head_first: bool = False) -> Family:
    """RoBERTa, and what differs from it in its vocabulary alone."""
    masked = partial(
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
        "roberta.",
        ("classifier.dense", "classifier.out_proj"),
        heads,
        masked=masked,
        probe_inputs=partial(segmented_text_probe, reserved=RESERVED),
        configure=partial(configure_roberta, config_class),
        reserved=RESERVED,
    )


ROBERTA = _roberta(
    "roberta",
    RobertaConfig,
    (
        RobertaForScoredMaskedLM,
        RobertaForSequenceClassification,
        RobertaForTokenClassification,
        RobertaForQuestionAnswering,
        RobertaModel,
    ),
)
XLM_ROBERTA = _roberta(
    "xlm-roberta",
    XLMRobertaConfig,
    (
        XLMRobertaForScoredMaskedLM,
        XLMRobertaForSequenceClassification,
        XLMRobertaForTokenClassification,
        XLMRobertaForQuestionAnswering,
        XLMRobertaModel,
    ),
    True,
)
CAMEMBERT = _roberta(
    "camembert",
    CamembertConfig,
    (
        CamembertForScoredMaskedLM,
        CamembertForSequenceClassification,
        CamembertForTokenClassification,
        CamembertForQuestionAnswering,
        CamembertModel,
    ),
    True,
)
