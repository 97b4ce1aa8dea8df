"""Checking a whole config before its first stage runs: what would fail in the last stage must not cost the first."""

from functools import partial

from transformers import PretrainedConfig

from pipeline import models
from pipeline.config.schema import Config, ExpandStage, ModelSizes, TrainStage
from pipeline.config.validation_errors import all_of
from pipeline.data import Prepared, open_prepared
from pipeline.errors import UserError, placed
from pipeline.expansion import target as targets
from pipeline.growth import methods, optimizer_state
from pipeline.growth.method import ExpansionOptions
from pipeline.growth.plan import GrowthPlan, plan_growth, require_possible
from pipeline.optim.optimizers import AdamW, Optimizer
from pipeline.records.run_folder import StageFolder
from pipeline.training.engine import deepspeed_config, precisions_of_workers, require_precision
from pipeline.training.fingerprint import require_same
from pipeline.training.stage import pace, rates


def before_data(config: Config, ranks: int) -> None:
    """Check what needs no data: families, batches, ranks, precisions, and the stages that have begun. Raises UserError
    that lists all problems."""
    precisions = precisions_of_workers()
    families = [partial(_require_family, name, sizes) for name, sizes in config.models.items()]
    stages = [partial(_stage_before_data, config, stage, ranks, precisions) for stage in config.stages]
    all_of([*families, *stages])


def _require_family(model: str, sizes: ModelSizes) -> None:
    with placed(f"models.{model}"):
        models.family_of(sizes)


def _stage_before_data(config: Config, stage: TrainStage | ExpandStage, ranks: int, precisions: set[str]) -> None:
    require_same(config, stage, each=True)
    if isinstance(stage, TrainStage):
        deepspeed_config(stage, ranks)
        require_precision(stage, precisions)
    else:
        options(stage, config.seed)


def after_data(config: Config) -> None:
    """Check what the data decide: model sizes, steps, and whether every growth can be lossless. Raises UserError that
    lists all problems."""
    data = open_prepared(config.path / "data")
    all_of(partial(_model_config, config, name, data) for name in config.models)
    model_configs = {name: _model_config(config, name, data) for name in config.models}
    all_of(partial(_stage_after_data, config, stage, data, model_configs) for stage in config.stages)


def _model_config(config: Config, name: str, data: Prepared) -> PretrainedConfig:
    with placed(f"models.{name}"):
        return models.trained(config.models[name], data.facts)


def _stage_after_data(
    config: Config, stage: TrainStage | ExpandStage, data: Prepared, model_configs: dict[str, PretrainedConfig]
) -> None:
    if isinstance(stage, TrainStage):
        rates(StageFolder(config.path / stage.name), stage, pace(stage, model_configs[stage.model], data))
    elif source := next((s for s in config.stages if s.name == stage.source), None):
        _require_growth(config, stage, model_configs[source.model], model_configs[stage.model])


def _require_growth(config: Config, stage: ExpandStage, source: PretrainedConfig, target: PretrainedConfig) -> None:
    """What an expansion's method and optimizer state need, as far as it can be known before there is a source."""
    method_options = options(stage, config.seed)
    with placed(f"stages.{stage.name}"):
        large = targets.adopt(source, target)
        architectures = models.architecture_of(source), models.architecture_of(large)
        require_possible(*architectures, method_options)
        if methods.find(method_options.method).needs_source:
            return
        growth = plan_growth(*architectures, method_options, models.initializer_range(large))
    _require_moments(config, stage, growth)


def _require_moments(config: Config, stage: ExpandStage, growth: GrowthPlan) -> None:
    """An optimizer state that is to grow needs a growth that allows it, and a stage behind that can read it."""
    if stage.optimizer_state != "grow":
        return
    slots = _optimizer_behind(config, stage).slots
    with placed(f"stages.{stage.name}"):
        optimizer_state.require(growth, slots, [slot.name for slot in slots])
    if any(isinstance(s, TrainStage) and s.start == stage.name and s.zero_stage == 0 for s in config.stages):
        raise UserError(
            f"stages.{stage.name}.optimizer_state: grow needs ZeRO shards, and the stage behind it has zero_stage 0; "
            "use 1, 2 or 3"
        )


def _optimizer_behind(config: Config, stage: ExpandStage) -> Optimizer:
    """The optimizer that leaves the state which the expansion reads: that of the last training stage before it."""
    origin: TrainStage | ExpandStage | None = stage
    while isinstance(origin, ExpandStage):
        source = origin.source
        origin = next((each for each in config.stages if each.name == source), None)
    return origin.optimizer if origin else AdamW()


def options(stage: ExpandStage, seed: int) -> ExpansionOptions:
    """The stage's method with its options, checked by the method. Raises UserError."""
    with placed(f"stages.{stage.name}.method"):
        return methods.parse(stage.method.name, stage.method.options, seed)
