"""What the rest of the pipeline needs to know about a family of models."""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from torch import Generator
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError, closest
from pipeline.models.architecture import Architecture
from pipeline.models.config_keys import LAYERS, ConfigKeys
from pipeline.models.fresh_configs import Facts
from pipeline.models.layer_types import LayerPattern
from pipeline.models.probes import Inputs

Objective = Literal["masked-lm", "causal-lm", "classifier"]
"""What a model is trained for: hidden tokens, the next token, the class of an image."""

OptionalSize = Literal["kv_heads", "head_dim", "tied", "rope_theta", "patch", "drop_path"]
"""A size of a `ModelSizes` that the models of some families have."""


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


@dataclass(frozen=True, kw_only=True)
class Family:
    """One architecture with its heads; the first is the one it is trained with.

    name: what configs of this package call it. data: what its models read. config_class: of their configs. keys: what a
    growth does with the keys of its config. resize: a model's sizes to those keys. positions: how many tokens, patches,
    sequences and scored positions one sample has. probe_inputs: random inputs for so many samples that touch every kind
    of embedding. initializer_range: the key of the standard deviation of fresh weights. configure: sizes and data facts
    to the config of a fresh model. reserved: rows of the position table that no token takes. optional_sizes: the sizes
    without which a model of another family is whole, and that its models have. windows: of every layer, how many tokens
    its attention sees, to each side where it sees both; None: all; empty where every layer of every model sees all.
    pattern: in which layers of two kinds take turns, and what transformers 4 reads of them; None: all are of one kind,
    or each model lists its own. drops_paths: whether `drop_path.install` does what a config says of stochastic depth,
    which the model's own code does not. least_layers: of a model that transformers builds.
    """

    name: str
    data: Literal["text", "images"]
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
    pattern: LayerPattern | None = None
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
