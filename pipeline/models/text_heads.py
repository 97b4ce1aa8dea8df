"""The heads that stand on text encoders: a function for each kind makes the `Head` of a `Trunk`, and `text_family` the
family of both."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import Architecture
from pipeline.models.config_keys import BERT_KEYS
from pipeline.models.family import Family, Head
from pipeline.models.fresh_configs import Facts, masked_keys, resized
from pipeline.models.probes import segmented_text_probe, text_positions
from pipeline.models.rows import linear, norm
from pipeline.models.text_encoders import Rows, Trunk

HeadRows = Callable[[Any, str], Rows]
"""The parameters of a head, by a config and by what its uses are counted by (`counted_per` of a `ParamSpec`)."""


def linear_head(name: str) -> HeadRows:
    """A head of one dense layer, which gives out classes."""
    return lambda config, counted_per: linear(name, "embed", "classes", counted_per=counted_per)


def dense_head(first: str, second: str) -> HeadRows:
    """A head of a dense layer, an activation that acts on each entry alone, and a dense layer that gives out
    classes."""
    return lambda config, counted_per: (
        *linear(first, "embed", "pooled", counted_per=counted_per),
        *linear(second, "pooled", "classes", counted_per=counted_per),
    )


def transformed(dense: str, normed: str, reading: str = "embed") -> HeadRows:
    """What stands in front of a decoder: a dense layer, an activation, a norm."""
    return lambda config, counted_per: (
        *linear(dense, reading, "transformed", counted_per=counted_per),
        *norm(normed, "transformed", "decoded"),
    )


def _biased(config: PretrainedConfig) -> bool:
    return True


def _unscaled(config: PretrainedConfig) -> float:
    return 1.0


@dataclass(frozen=True)
class Decoder:
    """What ends a masked language model, its matrix tied to the token embedding unless the config says otherwise.

    module: its name. bias: the module whose bias is a tied decoder's; an untied head holds that too, and does not read
    it. read_in_4: whether transformers 4 does. has_bias: whether it has any, by a config. std: of its fresh matrix, as
    in `ParamSpec`. built_first: the model's code builds its head before its encoder, so that the matrix goes by the
    head's name.
    """

    module: str
    bias: str | None = None
    read_in_4: bool = True
    has_bias: Callable[[Any], bool] = _biased
    std: Callable[[Any], float] = _unscaled
    built_first: bool = False

    def rows(self, config: PretrainedConfig) -> Rows:
        """Its parameters where it is not tied."""
        written = partial(linear, reading="decoded", writing="vocab", counted_per="scored", std=self.std(config))
        beside = () if self.bias is None else written(self.bias)[1:]
        return (*written(self.module, bias=self.has_bias(config)), *beside)

    def owners(self, embedding: str) -> dict[str, str]:
        """The names of its parameters that are tied, and what owns them. embedding: that of tokens."""
        beside = {} if self.bias is None else {f"{self.module}.bias": f"{self.bias}.bias"}
        return {f"{self.module}.weight": f"{embedding}.weight"} | beside

    @property
    def doubled(self) -> dict[str, str]:
        """`doubled` of an `Architecture` where it is not tied."""
        return {f"{self.bias}.bias": f"{self.module}.bias"} if self.bias and self.read_in_4 else {}


def masked_lm(
    trunk: Trunk,
    model_class: type[PreTrainedModel],
    transform: HeadRows,
    decoder: Decoder,
    beside: tuple[str, ...] = (),
) -> Head:
    """A masked language model. transform: what stands in front of its decoder. beside: patterns of what files may hold
    besides."""
    embedding = trunk.prefix + trunk.token_embedding
    owners = decoder.owners(embedding)

    def architecture(config: PretrainedConfig) -> Architecture:
        rows = (*transform(config, "scored"), *decoder.rows(config))
        if not config.tie_word_embeddings:
            return trunk.under(config, rows, LOGITS, beside=beside, doubled=decoder.doubled)
        rows = tuple(row for row in rows if row.name not in owners)
        found = trunk.under(config, rows, LOGITS, tied=True, beside=beside, aliases=owners)
        return _renamed(found, f"{embedding}.weight", f"{decoder.module}.weight") if decoder.built_first else found

    return Head("masked-lm", model_class, architecture)


def _renamed(architecture: Architecture, name: str, module: str) -> Architecture:
    """The same, one parameter under another name inside the model."""
    params = (replace(row, module=module) if row.name == name else row for row in architecture.params)
    return replace(architecture, params=tuple(params))


LOGITS = {"logits": "vocab"}
"""What a masked language model gives out, and the space of it."""
CLASSES = {"logits": "classes"}
"""The same of a classifier."""
SPAN = {"start_logits": "score", "end_logits": "score"}
"""The same of what answers questions: how far an answer begins and ends at a token."""


def downstream_heads(
    trunk: Trunk,
    texts: type[PreTrainedModel],
    tokens: type[PreTrainedModel],
    answers: type[PreTrainedModel],
    bare: type[PreTrainedModel],
    *,
    of_texts: HeadRows,
    of_tokens: HeadRows = linear_head("classifier"),
    of_answers: HeadRows = linear_head("qa_outputs"),
) -> tuple[Head, ...]:
    """What a trained encoder is fine-tuned with: classifiers of sequences and of tokens, what answers questions, and
    the bare encoder. of_texts, of_tokens, of_answers: the parameters of the heads."""
    return (
        Head("text-classifier", texts, lambda config: trunk.under(config, of_texts(config, "sequence"), CLASSES)),
        Head("token-classifier", tokens, lambda config: trunk.under(config, of_tokens(config, "token"), CLASSES)),
        Head("question-answering", answers, partial(_answering, trunk, of_answers)),
        encoder(trunk, bare),
    )


def _answering(trunk: Trunk, rows: HeadRows, config: PretrainedConfig) -> Architecture:
    """Two numbers for each token: how far an answer begins and ends there. Raises UserError for a config with another
    number."""
    if config.num_labels != 2:
        labels = config.num_labels
        raise UserError(f"a model that answers questions has 2 labels, for begin and end, and not {labels}")
    return trunk.under(config, rows(config, "token"), SPAN)


def encoder(trunk: Trunk, model_class: type[PreTrainedModel]) -> Head:
    """The bare encoder."""
    return Head("encoder", model_class, trunk.bare, pooler="pooler" if trunk.pooler else None)


def configured(
    trunk: Trunk,
    config_class: Callable[..., PretrainedConfig],
    resize: Callable[[ModelSizes], dict[str, Any]],
    sizes: ModelSizes,
    facts: Facts,
) -> PretrainedConfig:
    """The config of a fresh model. Raises UserError for data that are no text, or have no mask token."""
    epsilon = {trunk.epsilon: sizes.eps} if isinstance(trunk.epsilon, str) else {}
    return config_class(**masked_keys(sizes, facts), **epsilon, **resize(sizes))


def text_family(
    trunk: Trunk,
    config_class: type[PretrainedConfig],
    heads: tuple[Head, ...],
    resize: Callable[[ModelSizes], dict[str, Any]] = resized,
    **fields: Any,
) -> Family:
    """A family of text encoders. fields: those of `Family` that are not as BERT's."""
    as_of_bert: dict[str, Any] = {
        "keys": BERT_KEYS,
        "probe_inputs": segmented_text_probe,
        "configure": partial(configured, trunk, config_class, resize),
    }
    return Family(
        name=trunk.family,
        data="text",
        config_class=config_class,
        heads=heads,
        resize=resize,
        positions=text_positions,
        pattern=trunk.pattern,
        **(as_of_bert | fields),
    )
