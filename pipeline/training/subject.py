"""What a training stage trains: the whole model (`WholeModel`), or what a model is made by (expansion/fit.py).

The loop and the engine train a `Trained`, whatever it computes; a `Subject` says what that is for a stage, from which
checkpoint it begins, and what a pass costs besides the model's own FLOPs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pipeline import checkpoints, models
from pipeline.checkpoints import loader, publish
from pipeline.config.model_sizes import ModelSizes
from pipeline.config.schema import Config, TrainStage
from pipeline.data import Prepared
from pipeline.errors import placed
from pipeline.growth.making import NO_MAKING, MakingCost
from pipeline.models import Facts, starts
from pipeline.models.optimizer_groups import optimizer_groups
from pipeline.optim.optimizers import AdamW, OptimizerSpec
from pipeline.optim.parameter_groups import GroupRule
from pipeline.rng import derive
from pipeline.training import partitioned
from pipeline.training.start import continues_optimizer

Group = tuple[GroupRule, dict[str, nn.Parameter]]
"""How its parameters are trained, and these by their names in the module."""


@dataclass(frozen=True)
class Trained:
    """A module that computes logits, in training. groups: all its parameters, no group empty. beside: makes the small
    files that lie beside a checkpoint's shards, by name. layers: those of the model, which may be compiled."""

    module: nn.Module
    groups: tuple[Group, ...]
    beside: Callable[[], Mapping[str, str]] = field(default=dict)
    layers: tuple[nn.Module, ...] = ()


def of_model(
    model: PreTrainedModel, activation_checkpointing: int = False, optimizer: OptimizerSpec = AdamW()
) -> Trained:
    """A model, its parameters in the groups of `optimizer`; its config lies beside its shards.
    activation_checkpointing: of the first of every so many layers."""
    published = models.config_text(model.config)
    model.config.use_cache = False  # it would keep every layer's keys and values
    if activation_checkpointing:
        checkpoint_layers(model, activation_checkpointing)
    named, architecture = dict(model.named_parameters()), models.architecture_of(model.config)
    sorted_in = optimizer_groups(architecture, named, optimizer)
    groups = tuple((rule, {name: named[name] for name in names}) for rule, names in sorted_in.items())
    layers = tuple(model.get_submodule(path) for path in architecture.blocks())
    return Trained(model, groups, lambda: {checkpoints.CONFIG: published}, layers)


def checkpoint_layers(model: PreTrainedModel, every: int) -> None:
    """Have the first of every so many layers computed again in the backward pass."""
    model.config.use_cache = False
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for number, layer in enumerate(layers):
        layer.gradient_checkpointing = number % every == 0


class Subject(ABC):
    """What one stage trains."""

    def __init__(self, config: Config, stage: TrainStage):
        self.config, self.stage = config, stage

    @abstractmethod
    def model(self, data: Prepared, start: Path | None) -> PretrainedConfig:
        """The config of the model that computes the loss. start: the checkpoint to begin from. Raises UserError."""

    def making(self) -> MakingCost:
        """FLOPs of each pass of a micro-batch besides the model's."""
        return NO_MAKING

    def coefficients(self) -> int | None:
        """How many numbers are learned, where they are not the model's parameters."""
        return None

    def fresh(self, model: PretrainedConfig, start: Path | None) -> list[str]:
        """The parameters that begin afresh though there is a start, by name."""
        return []

    def left_behind(self, model: PretrainedConfig, start: Path | None) -> list[str]:
        """The parameters of the start that are not trained, by name."""
        return []

    @abstractmethod
    def continues(self, start: Path, ranks: int) -> bool:
        """Whether the engine loads the checkpoint `start`, its optimizer too, where the stage has none of its own.
        Raises UserError."""

    @abstractmethod
    def to_load(self, model: PretrainedConfig, attention: str = "sdpa") -> Trained:
        """What a checkpoint will be loaded into. attention: what it computes with, `sdpa` or `eager`."""

    def whole(self, model: PretrainedConfig, attention: str = "sdpa") -> nn.Module:
        """The module as one process computes with it, for measuring."""
        return self.to_load(model, attention).module

    @abstractmethod
    def begun(self, model: PretrainedConfig, start: Path | None, attention: str = "sdpa") -> Trained:
        """What the stage begins with, where no checkpoint is loaded."""


class WholeModel(Subject):
    """A model: fresh, or with the weights of the checkpoint that it starts from."""

    def model(self, data: Prepared, start: Path | None) -> PretrainedConfig:
        """From scratch by the config's sizes; else the start's own config (an expansion may have changed its
        epsilon)."""
        sizes = self.config.models[self.stage.model]
        if start is None:
            return models.trained(sizes, data.facts)
        if newest := self._newest():
            config = models.read_config(newest / checkpoints.CONFIG)[1]
        else:
            config = started(self.config, self.stage, self._stored(start), data.facts)
        require_startable(self.stage, start, config, sizes, data.facts)
        return config

    def _newest(self) -> Path | None:
        return publish.newest(self.config.path / self.stage.name / "checkpoints")

    def _stored(self, start: Path) -> PretrainedConfig:
        """The config of the start; of a folder that holds tied tensors which differ, of an untied model."""
        if _is_of_the_run(self.config, self.stage):
            return models.read_config(start / checkpoints.CONFIG)[1]
        return checkpoints.read(start)[1]

    def fresh(self, model: PretrainedConfig, start: Path | None) -> list[str]:
        """The parameters of a head that the checkpoint does not have, where the stage has none of its own yet. Raises
        UserError where it lacks others."""
        if start is None or self._newest():  # then the start may be gone
            return []
        with placed(str(start)):
            return starts.fresh(self._stored(start), model)

    def left_behind(self, model: PretrainedConfig, start: Path | None) -> list[str]:
        return [] if start is None or self._newest() else starts.left_behind(self._stored(start), model)

    def continues(self, start: Path, ranks: int) -> bool:
        return continues_optimizer(start, self.stage, ranks)

    def to_load(self, model: PretrainedConfig, attention: str = "sdpa") -> Trained:
        if self.stage.zero_stage == 3:
            return self._trained(partitioned.to_load(model, self.stage, attention))
        return self._trained(models.build(model, self._seed, attention))

    def whole(self, model: PretrainedConfig, attention: str = "sdpa") -> nn.Module:
        return self._trained(models.build(model, self._seed, attention)).module

    def begun(self, model: PretrainedConfig, start: Path | None, attention: str = "sdpa") -> Trained:
        if self.stage.zero_stage == 3:
            return self._trained(self._begun_cut(model, start, attention))
        built = models.build(model, self._seed, attention)
        if start is not None:
            models.fill(built, loader.weights(start), starts.sources(self._stored(start), model))
        return self._trained(built)

    def _begun_cut(self, model: PretrainedConfig, start: Path | None, attention: str) -> PreTrainedModel:
        """The model that a stage begins with, cut over the ranks."""
        if start is None:
            return partitioned.initialized(model, self._seed, self.stage, attention)
        read, sources = loader.weights(start), starts.sources(self._stored(start), model)
        if not self.fresh(model, start):
            return partitioned.filled(model, lambda name: read(sources[name]), self.stage, attention)
        built = partitioned.initialized(model, self._seed, self.stage, attention)
        return partitioned.overwritten(built, read, sources)

    @property
    def _seed(self) -> int:
        """Of fresh weights."""
        return derive(self.config.seed, "init", self.stage.name) % 2**32

    def _trained(self, model: PreTrainedModel) -> Trained:
        return of_model(model, self.stage.activation_checkpointing, self.stage.optimizer)


def started(config: Config, stage: TrainStage, stored: PretrainedConfig, facts: Facts) -> PretrainedConfig:
    """The config with which a stage begins to train a model of the config `stored`, a folder's or another stage's: what
    matters to training alone is as the model of this stage says."""
    return starts.with_training_keys(starts.adapted(stored, facts), config.models[stage.model])


def require_startable(
    stage: TrainStage, start: object, config: PretrainedConfig, sizes: ModelSizes, facts: Facts
) -> None:
    """Raises UserError where a stage cannot train its model from a start of that config."""
    with placed(f"{start}: cannot be trained as model '{stage.model}' in stages.{stage.name}"):
        starts.require(config, sizes, facts)


def _is_of_the_run(config: Config, stage: TrainStage) -> bool:
    """Whether the start is another stage, and not a folder."""
    return stage.start in {each.name for each in config.stages}
