"""What the rest of the pipeline needs to know about a family of models."""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Generator, Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError, closest
from pipeline.models import drop_path
from pipeline.models.architecture import Architecture

Facts = Mapping[str, Any]
"""What `prepare` states about the data. `kind`; of text vocab_size (rows of a fresh model's table), pieces (of the
tokenizer; none stated: as many), block (tokens of a sample), scored (positions that a masked model predicts of it) and
special (ids by name, where they are known); of images size, channels and class_names."""

Inputs = dict[str, Tensor]
"""The keyword arguments of a model's forward."""

PROBE_TOKENS = 16
"""Tokens of a probe at most: rows of a position table all go through the same map, and more tokens tell two functions
apart no better."""

Objective = Literal["masked-lm", "causal-lm", "classifier"]
"""What a model is trained for: hidden tokens, the next token, the class of an image."""

OptionalSize = Literal["kv_heads", "head_dim", "tied", "rope_theta", "patch", "drop_path"]
"""A size of a `ModelSizes` that the models of some families have."""

TEXT_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)


WHOLE = (drop_path.KEY, "layerdrop")
"""Keys of the probability at which whole branches or layers are dropped."""


@dataclass(frozen=True)
class ConfigKeys:
    """What a growth does with each key of a family's config. A key in none of the lists counts as one of `function`.

    sizes: a growth changes them, the target's value counts. training: they matter to training alone, the target's value
    counts. kept: they decide nothing about a growth (no model reads them, or the plan decides), the source's value
    counts whatever the target says. function: they
    decide what a model computes, source and target must agree. derived: `transformers` computes them from the others.
    width: of `sizes`, those that go along with hidden_size where they equal it. undeclared: of `sizes` and `training`,
    those that are read where the config has them, though its class declares none; a target without them has none.
    """

    sizes: tuple[str, ...]
    training: tuple[str, ...]
    kept: tuple[str, ...]
    function: tuple[str, ...]
    derived: tuple[str, ...] = ()
    width: tuple[str, ...] = ()
    undeclared: tuple[str, ...] = ()

    @property
    def dropout(self) -> tuple[str, ...]:
        """Those of `training` that are a probability of dropout in a model's layers, dropping of whole branches or
        layers apart."""
        others = ("classifier", "summary", "qa", "seq_classif", *WHOLE)
        return tuple(key for key in self.training if "drop" in key and not key.startswith(others))

    def extended(self, **more: tuple[str, ...]) -> "ConfigKeys":
        """The same lists with more keys in those that are named."""
        return replace(self, **{name: getattr(self, name) + keys for name, keys in more.items()})


COMMON_KEYS = ConfigKeys(
    sizes=(),
    training=("use_cache", "gradient_checkpointing"),
    kept=(
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "cls_token_id",
        "decoder_start_token_id",
        "directionality",
        "dtype",
        "eos_token_id",
        "has_pooler",
        "id2label",
        "label2id",
        "mask_token_id",
        "n_special",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "output_scores",
        "pad_token_id",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
        "predict_special_tokens",
        "prefix",
        "problem_type",
        "quantization_config",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "task_specific_params",
        "tokenizer_class",
        "torch_dtype",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
    ),
    function=("is_encoder_decoder", "model_type", "tie_word_embeddings"),
)
"""The keys of every `PretrainedConfig`, and those that published files of older versions hold besides."""

ROPE, ROPE_AS_WRITTEN, ROPE_BEFORE_5 = "rope_parameters", "rope_as_written", ("rope_theta", "rope_scaling")
"""The key of rotary positions in transformers 5; the attribute of a config that holds what its file says of them in the
keys of transformers 4; and those keys."""

COMPARED_APART = (ROPE, "tie_word_embeddings", "model_type")
"""Keys of `function` that are compared by what they mean: rotary positions, the names of parameters, the family."""

POSITIONS = "max_position_embeddings"
"""The key of the number of positions."""

DROPOUT_KEYS = ("attention_probs_dropout_prob", "hidden_dropout_prob", "initializer_range")
"""The training keys of BERT and of what was written after it."""

TEXT_KEYS = COMMON_KEYS.extended(sizes=TEXT_SIZES)
BERT_KEYS = TEXT_KEYS.extended(
    training=(*DROPOUT_KEYS, "classifier_dropout"),
    kept=("layer_norm_eps",),
    function=("add_cross_attention", "hidden_act", "is_decoder", "type_vocab_size"),
)
IMAGE_KEYS = COMMON_KEYS.extended(
    sizes=("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "image_size", "patch_size"),
    training=DROPOUT_KEYS,
    kept=("layer_norm_eps",),
    function=("hidden_act", "num_channels", "qkv_bias"),
    undeclared=("head_dim",),
)


POOLER = "has_pooler"
"""The key of a config, of this package alone, that is false where the files of a bare encoder hold no pooler."""


def has_pooler(config: PretrainedConfig) -> bool:
    """Whether a bare encoder of that config has a pooler, as `transformers` builds it where nobody says otherwise."""
    return getattr(config, POOLER, True) is not False


@dataclass(frozen=True)
class Head:
    """What a model of a family ends with: its class, in `transformers` or here, and its architecture by a config.

    name: an `Objective` or `distilled` (a classifier too), which are trained here; or what grows and is not trained
    here: `encoder` (no head), `pre-training` (hidden tokens and the next sentence), `next-sentence`, `text-classifier`
    (of sequences), `token-classifier`, `question-answering`. pooler: the module that a model of the class may lack."""

    name: str
    model_class: type[PreTrainedModel]
    architecture: Callable[[Any], Architecture]
    pooler: str | None = None

    @property
    def trained_here(self) -> bool:
        """Whether this package trains it."""
        return self.name in (*get_args(Objective), "distilled")

    def options(self, config: PretrainedConfig) -> dict[str, Any]:
        """What its class takes besides the config to build the model that the config means."""
        return {} if self.pooler is None or has_pooler(config) else {"add_pooling_layer": False}

    def as_stored(self, config: PretrainedConfig, held: Collection[str]) -> PretrainedConfig:
        """The config of a model whose parameters are `held`: with a pooler or without, as these say."""
        if self.pooler is None:
            return config
        config = copy.deepcopy(config)
        vars(config).pop(POOLER, None)
        if not any(name.startswith(f"{self.pooler}.") for name in held):
            setattr(config, POOLER, False)
        return config

    @property
    def public_class(self) -> type[PreTrainedModel]:
        """The class whose `from_pretrained` loads such a model: of a subclass of a `transformers` model that one."""
        known = next(each for each in self.model_class.__mro__ if each.__module__.startswith("transformers"))
        return self.model_class if known.__name__.endswith("PreTrainedModel") else known

    @property
    def class_name(self) -> str:
        """The name in a config's `architectures`, which any other reader knows."""
        return self.public_class.__name__


def no_windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    """Of families whose attention has none."""
    return ()


def no_older_keys(config: PretrainedConfig) -> dict[str, Any]:
    """Of families whose configs transformers 4 reads as they are."""
    return {}


def not_misread(config: PretrainedConfig) -> tuple[str, ...]:
    """Of families whose models transformers 4 computes as transformers 5 does."""
    return ()


LAYERS = ("num_hidden_layers", "n_layer", "n_layers")
"""The keys of configs that say how many layers a model has."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture with its heads; the first is the one it is trained with.

    keys: what a growth does with the keys of its config. resize: a model's sizes to those keys. positions: how many
    tokens, patches, sequences and scored positions one sample has. probe_inputs: random inputs for so many samples that
    touch every kind of embedding. initializer_range: the key of the standard deviation of fresh weights. configure:
    sizes and data facts to the config of a fresh model. reserved: rows of the position table that no token takes.
    optional_sizes: the sizes without which a model of another family is whole, and that its models have. windows: of
    every layer, how many tokens its attention sees, to each side where it sees both; None: all; empty where every layer
    of every model sees all. older_keys: what a config says in keys of transformers 4 alone, which a written one holds
    besides; None: a key that it does not hold. misread: what transformers 4 makes otherwise of a written config all the
    same, in words. drops_paths: whether `drop_path.install` does what a config says of stochastic depth, which the
    model's own code does not. least_layers: of a model that transformers builds.
    """

    name: str
    data: str
    config_class: type[PretrainedConfig]
    heads: tuple[Head, ...]
    keys: ConfigKeys
    resize: Callable[[ModelSizes], dict[str, Any]]
    positions: Callable[[Any, Facts], dict[str, int]]
    probe_inputs: Callable[[Any, Generator, int], Inputs]
    configure: Callable[[ModelSizes, Facts], PretrainedConfig]
    initializer_range: str = "initializer_range"
    reserved: int = 0
    optional_sizes: tuple[OptionalSize, ...] = ()
    windows: Callable[[Any], tuple[int | None, ...]] = no_windows
    older_keys: Callable[[Any], dict[str, Any]] = no_older_keys
    misread: Callable[[Any], tuple[str, ...]] = not_misread
    drops_paths: bool = False
    least_layers: int = 0

    def least(self, key: str) -> int:
        """The smallest number that a size in its config can be."""
        return self.least_layers if key in LAYERS else 1

    @property
    def objective(self) -> Objective:
        """What its models are trained for."""
        return cast(Objective, self.heads[0].name)

    def head(self, config: PretrainedConfig) -> Head:
        """The head that `config` names in `architectures`; without a name, the first.

        Raises UserError for an unknown one."""
        public = {head.class_name: head for head in self.heads}
        names = config.architectures or [self.heads[0].class_name]
        if not isinstance(names, list):
            raise UserError(f"architectures is {names!r} and no list; name the model's class in it")
        name = str(names[0])
        # `save_pretrained` writes the names of this package's subclasses.
        written = {head.model_class.__name__: head for head in self.heads}
        if name not in public | written:
            raise UserError(
                f"architecture '{name}' of family '{self.name}' is not known{closest(name, public) or ';'} known are "
                f"{', '.join(public)}: load the model as one of them (say {next(iter(public))}.from_pretrained) and "
                "save that"
            )
        return (public | written)[name]


def resized(sizes: ModelSizes, **others: str) -> dict[str, Any]:
    """What a model's sizes are called in a config of `transformers`, in most families. others: the keys of a family
    that calls some otherwise, by those of most."""
    keys = {
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp_units,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.dropout,
        "initializer_range": sizes.init,
    }
    return {others.get(key, key): value for key, value in keys.items()}


def dropped(sizes: ModelSizes) -> dict[str, Any]:
    """The rate of stochastic depth in the config of a family that has it."""
    return {drop_path.KEY: sizes.drop_path or 0.0}


def image_resized(sizes: ModelSizes) -> dict[str, Any]:
    """`resized` for models of images, whose patch may be left as it is."""
    return resized(sizes) | dropped(sizes) | ({} if sizes.patch is None else {"patch_size": sizes.patch})


def class_keys(facts: Facts) -> dict[str, Any]:
    """The classes of the data in a config."""
    names = facts["class_names"]
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def head_dim(config: PretrainedConfig) -> int:
    """The size of a head: what the config says of it, else the heads share the width."""
    stated: int | None = getattr(config, "head_dim", None)
    return stated or int(config.hidden_size // config.num_attention_heads)


def positions_of(facts: Facts) -> int:
    """Tokens of the longest block that the models of a run read."""
    return int(facts.get("positions", facts["block"]))


def masked_keys(sizes: ModelSizes, facts: Facts) -> dict[str, Any]:
    """What the data decide of a masked model: the vocabulary and the number of positions. Raises UserError."""
    require_kind(sizes, facts, "text")
    if "mask" not in facts.get("special", {"mask"}):
        raise UserError(
            f"models of family '{sizes.family}' are trained by masking, and the tokenizer of the data has no mask "
            "token; choose a tokenizer that has one, or a causal model"
        )
    return {"vocab_size": facts["vocab_size"], "max_position_embeddings": positions_of(facts), "pad_token_id": None}


def causal_keys(sizes: ModelSizes, facts: Facts) -> dict[str, Any]:
    """What the data decide of a causal model: vocabulary, and the tokens that begin and separate texts. Raises
    UserError."""
    require_kind(sizes, facts, "text")
    special = facts.get("special", {})
    return {
        "vocab_size": facts["vocab_size"],
        "bos_token_id": special.get("cls"),
        "eos_token_id": special.get("sep"),
        "pad_token_id": None,  # blocks are packed, and an embedding would not learn that row
    }


def require_kind(sizes: ModelSizes, facts: Facts, kind: Literal["text", "images"]) -> None:
    """Raises UserError where the data are of another kind."""
    if facts["kind"] != kind:
        raise UserError(
            f"model family '{sizes.family}' reads {kind}, the data are {facts['kind']}; choose "
            + ("a text data set" if kind == "text" else "an image data set")
        )


def stated(**keys: Any) -> dict[str, Any]:
    """The keys that have a value."""
    return {key: value for key, value in keys.items() if value is not None}


def text_positions(config: PretrainedConfig, facts: Facts) -> dict[str, int]:
    return {"token": facts["block"], "scored": facts["scored"], "sequence": 1}


def causal_positions(config: PretrainedConfig, facts: Facts) -> dict[str, int]:
    """The head runs at every position."""
    return text_positions(config, {**facts, "scored": facts["block"]})


def text_probe(config: Any, generator: Generator, samples: int, reserved: int = 0) -> Inputs:
    """Token ids and attention mask (samples, S): the first sequence has full length, the others end in padding.

    reserved: rows of the position table that no token takes."""
    length = min(config.max_position_embeddings - reserved, PROBE_TOKENS)
    lengths = torch.randint(max(1, length // 2), length + 1, (samples,), generator=generator)
    lengths[0] = length
    return {
        "input_ids": torch.randint(config.vocab_size, (samples, length), generator=generator),
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
    }


def segmented_text_probe(config: Any, generator: Generator, samples: int, reserved: int = 0) -> Inputs:
    """As `text_probe`, every token with a random segment, for models that have a table of token types."""
    inputs = text_probe(config, generator, samples, reserved)
    if config.type_vocab_size:
        shape = inputs["input_ids"].shape
        inputs["token_type_ids"] = torch.randint(config.type_vocab_size, shape, generator=generator)
    return inputs


def image_probe(config: Any, generator: Generator, samples: int) -> Inputs:
    """Random pixels (samples, C, H, W), float64."""
    shape = (samples, config.num_channels, config.image_size, config.image_size)
    return {"pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64)}
