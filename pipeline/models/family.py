"""What the rest of the pipeline needs to know about a family of models."""

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PretrainedConfig, PreTrainedModel

from pipeline.config.schema import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import Architecture, LayerStack, NormEpsilon, ParamSpec, Space, heads, spaces

Facts = dict
"""What `prepare` found out about the data: vocabulary, block length, image size, classes, …"""

TEXT_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)
IMAGE_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "image_size",
    "patch_size",
    "pooler_output_size",
)


@dataclass(frozen=True)
class Head:
    """What a model of a family ends with: its class in `transformers` (or ours) and its table."""

    name: str
    model_class: type[PreTrainedModel]
    architecture: Callable[[PretrainedConfig], Architecture]

    @property
    def class_name(self) -> str:
        """The name in a config's `architectures`. A subclass of a `transformers` model goes by its parent's name,
        which any other reader knows."""
        ours = self.model_class.__module__.startswith("transformers")
        parent = self.model_class.__mro__[1]
        return self.model_class.__name__ if ours or parent.__name__.endswith("PreTrainedModel") else parent.__name__


@dataclass(frozen=True)
class Family:
    """One architecture with its heads; the first is the one it is trained with.

    sizes: the keys of its config that a growth may change. resize: a model's sizes to those keys. positions: how many
    tokens, patches, sequences and scored positions one sample has. configure: sizes and data facts to a config, for the
    families that this pipeline trains. reserved: rows of the position table that no token takes.
    """

    name: str
    data: str
    config_class: type[PretrainedConfig]
    heads: tuple[Head, ...]
    sizes: tuple[str, ...]
    resize: Callable[[ModelSizes], dict]
    positions: Callable[[PretrainedConfig, Facts], dict[str, int]]
    configure: Callable[[ModelSizes, Facts], PretrainedConfig] | None = None
    reserved: int = 0

    def head(self, config: PretrainedConfig) -> Head:
        """The head that `config` names in `architectures`; without a name, the first. Raises UserError for an unknown one."""
        known = {head.class_name: head for head in self.heads}
        wanted = (config.architectures or [self.heads[0].class_name])[0]
        wanted = next(
            (name for name, head in known.items() if head.model_class.__name__ == wanted), wanted
        )  # `save_pretrained` of ours
        if wanted not in known:
            raise UserError(
                f"architecture '{wanted}' of family '{self.name}' is not known; known are {', '.join(known)}"
            )
        return known[wanted]


def resized(sizes: ModelSizes) -> dict:
    """What a model's sizes are called in a config of `transformers`, in most families."""
    return {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp_units,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.dropout,
        "initializer_range": sizes.init,
    }


def text_config(config_class: type[PretrainedConfig], sizes: ModelSizes, facts: Facts) -> PretrainedConfig:
    """A BERT-like config: the vocabulary and the number of positions come from the data."""
    if facts["kind"] != "text":
        raise UserError(
            f"model family '{sizes.family}' reads text, the data are {facts['kind']}; choose a text data set"
        )
    return config_class(
        vocab_size=facts["vocab_size"],
        max_position_embeddings=facts["block"],
        layer_norm_eps=sizes.eps,
        pad_token_id=None,
        **resized(sizes),
    )


def bert_architecture(
    family: str, config: PretrainedConfig, params: tuple[ParamSpec, ...], *more: Space, **options
) -> Architecture:
    """A BERT-like table: the spaces that every one has, and `more` of its own."""
    return Architecture(
        family=family,
        spaces=spaces(
            Space("embed", config.hidden_size, "residual"),
            *more,
            *heads(config.num_attention_heads, config.hidden_size // config.num_attention_heads),
            Space("mlp", config.intermediate_size, "mlp"),
            Space("vocab", config.vocab_size, "table"),
            Space("positions", config.max_position_embeddings, "table"),
            Space("types", config.type_vocab_size, "table"),
        ),
        stacks=(LayerStack("layers", config.num_hidden_layers),),
        params=params,
        epsilon=NormEpsilon(config.layer_norm_eps, "layer_norm_eps"),
        **options,
    )


def text_positions(config: PretrainedConfig, facts: Facts) -> dict[str, int]:
    return {"token": facts["block"], "scored": facts["scored"], "sequence": 1}
