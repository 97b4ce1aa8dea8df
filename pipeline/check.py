"""Checking a whole config before its first stage runs: what would fail in the last stage must not cost the first."""

from functools import partial

from transformers import PretrainedConfig

from pipeline import models, targets, train
from pipeline.complaints import all_of
from pipeline.config import Config, ExpandStage, TrainStage
from pipeline.data import Prepared, open_prepared
from pipeline.engine import require_precision, settings, precisions_of_workers
from pipeline.errors import UserError
from pipeline.fingerprint import require_same
from pipeline.folders import StageFolder
from pipeline.growth import engine as growth
from pipeline.growth import moments
from pipeline.growth.method import Options
from pipeline.growth.plan import Plan


def before_data(config: Config, ranks: int) -> None:
    """What needs no data: families, batches, ranks, precisions, and what the folder already holds. Raises UserError
    that tells all problems."""
    precisions = precisions_of_workers()
    all_of(partial(_stage_before_data, config, stage, ranks, precisions) for stage in config.stages)


def _stage_before_data(config: Config, stage: TrainStage | ExpandStage, ranks: int, precisions: set[str]) -> None:
    require_same(config, stage)
    models.family(config.models[stage.model].family)
    if isinstance(stage, TrainStage):
        settings(stage, ranks)
        require_precision(stage, precisions)


def after_data(config: Config) -> None:
    """What the data decide: model sizes, steps, and whether every growth can be lossless. Raises UserError that tells
    all problems."""
    data = open_prepared(config.path / "data")
    all_of(partial(models.trained, sizes, data.facts) for sizes in config.models.values())
    made = {name: models.trained(sizes, data.facts) for name, sizes in config.models.items()}
    all_of(partial(_stage_after_data, config, stage, data, made) for stage in config.stages)


def _stage_after_data(
    config: Config, stage: TrainStage | ExpandStage, data: Prepared, made: dict[str, PretrainedConfig]
) -> None:
    if isinstance(stage, TrainStage):
        train.rates(StageFolder(config.path / stage.name), stage, train.pace(stage, made[stage.model], data))
    elif source := next((s for s in config.stages if s.name == stage.source), None):
        small = made[source.model]
        tables = models.table(small), models.table(targets.adopt(small, made[stage.model]))
        _require_moments(config, stage, growth.plan(*tables, getattr(small, tables[0].eps), options(stage, config.seed)))


def _require_moments(config: Config, stage: ExpandStage, made: Plan) -> None:
    """An optimizer state that is to grow needs a growth that allows it, and a stage behind that can read it."""
    if stage.optimizer_state == "grow":
        moments.require(made, set(moments.VIEWS))
        if any(isinstance(s, TrainStage) and s.start == stage.name and s.zero_stage == 0 for s in config.stages):
            raise UserError(f"stages.{stage.name}.optimizer_state: grow needs ZeRO shards, and the stage behind it has zero_stage 0; use 1, 2 or 3")


def options(stage: ExpandStage, seed: int) -> Options:
    return Options(stage.method, stage.depth, stage.placement, stage.noise, seed)
