"""What the rest of the pipeline needs to know about a family of models."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedModel

from pipeline.axes import Param, Space, Table, spaces
from pipeline.config import ModelSizes
from pipeline.errors import UserError

Facts = dict
"""What `prepare` found out about the data: vocabulary, block length, image size, classes, …"""


@dataclass(frozen=True)
class Family:
    """One architecture with one head.

    table: the architecture at the sizes of a config. configure: sizes and data facts to a config.
    positions: how many tokens, patches, sequences and scored positions one training sample has.
    """

    name: str
    data: str
    config_class: type[PretrainedConfig]
    model_class: type[PreTrainedModel]
    table: Callable[[PretrainedConfig], Table]
    configure: Callable[[ModelSizes, Facts], PretrainedConfig]
    positions: Callable[[PretrainedConfig, Facts], dict[str, int]]

    @property
    def architecture(self) -> str:
        """The name in a config's `architectures`. A subclass of a `transformers` model goes by its parent's name,
        which any other reader knows."""
        ours = self.model_class.__module__.startswith("transformers")
        parent = self.model_class.__mro__[1]
        return self.model_class.__name__ if ours or parent.__name__.endswith("PreTrainedModel") else parent.__name__


def resized(sizes: ModelSizes) -> dict:
    """What a model's sizes are called in a config of `transformers`, whatever its family."""
    return {
        "hidden_size": sizes.hidden, "num_hidden_layers": sizes.layers, "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp_units, "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.dropout, "initializer_range": sizes.init,
    }


def text_config(config_class: type[PretrainedConfig], sizes: ModelSizes, facts: Facts) -> PretrainedConfig:
    """A BERT-like config: the vocabulary and the number of positions come from the data."""
    if facts["kind"] != "text":
        raise UserError(f"model family '{sizes.family}' reads text, the data are {facts['kind']}; choose a text data set")
    return config_class(
        vocab_size=facts["vocab_size"], max_position_embeddings=facts["block"], layer_norm_eps=sizes.eps, pad_token_id=None,
        **resized(sizes),
    )


def masked_lm_table(family: str, config: PretrainedConfig, params: tuple[Param, ...], *more: Space) -> Table:
    """A BERT-like table: the spaces that every one has, `more` of its own, and the decoder tied to the token embedding."""
    width, head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    return Table(
        family=family,
        spaces=spaces(
            Space("embed", width, "stream"), *more, Space("decoded", width, "tied"),
            Space("heads", width, "heads", head_dim), Space("mlp", config.intermediate_size, "mlp"),
            Space("vocab", config.vocab_size, "fixed"), Space("positions", config.max_position_embeddings, "fixed"),
            Space("types", config.type_vocab_size, "fixed"),
        ),
        layers=config.num_hidden_layers, params=params, attention="heads", eps="layer_norm_eps",
        aliases={
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
    )


def masked_lm_positions(config: PretrainedConfig, facts: Facts) -> dict[str, int]:
    return {"token": facts["block"], "scored": facts["scored"], "sequence": 1}
