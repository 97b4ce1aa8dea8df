"""Checking a whole config before its first stage runs: what would fail in the last stage must not cost the first."""

from pipeline import models, targets, train
from pipeline.config import Config, ExpandStage, TrainStage
from pipeline.data import open_prepared
from pipeline.engine import settings
from pipeline.errors import UserError
from pipeline.folders import StageFolder
from pipeline.growth import engine as growth
from pipeline.growth import moments
from pipeline.growth.method import Options
from pipeline.growth.plan import Plan
from pipeline.schedule import resolve


def before_data(config: Config, ranks: int) -> None:
    """What needs no data: families, batches, ranks, and what the folder already holds. Raises UserError."""
    for stage in config.stages:
        same_settings(config, stage)
        models.family(config.models[stage.model].family)
        if isinstance(stage, TrainStage):
            settings(stage, ranks)


def after_data(config: Config) -> None:
    """What the data decide: model sizes, steps, and whether every growth can be lossless. Raises UserError."""
    data = open_prepared(config.path / "data")
    made = {name: models.trained(sizes, data.facts) for name, sizes in config.models.items()}
    for stage in config.stages:
        if isinstance(stage, TrainStage):
            resolve(stage.schedule, train.pace(stage, made[stage.model], data))
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


def same_settings(config: Config, stage: TrainStage | ExpandStage) -> None:
    """Refuse to continue a stage that was begun with other settings, its origins' included. Raises UserError."""
    folder = StageFolder(config.path / stage.name)
    held, wanted = folder.facts.get("fingerprint"), config.fingerprint(stage)
    if held is None or held == wanted:
        return
    place, old, new = next(_differences(held, wanted))
    raise UserError(
        f"{folder.path}: begun with {place} = {old}, the config now says {new}; take another folder (folder=…) or remove {folder.path}"
    )


def _differences(held: object, wanted: object, place: str = ""):
    """(dotted place, held value, wanted value) of every leaf that differs."""
    if not isinstance(held, dict) or not isinstance(wanted, dict):
        if held != wanted:
            yield place, held, wanted
        return
    for key in {**held, **wanted}:
        yield from _differences(held.get(key), wanted.get(key), f"{place}.{key}" if place else key)
