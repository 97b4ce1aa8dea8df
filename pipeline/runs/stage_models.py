"""The config of the model of every stage, before there is any: what the stages before it, the folders that it starts
from and the data make of the sizes of the run."""

from pathlib import Path

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import publish
from pipeline.config.schema import Config, ExpandStage, FitStage, TrainStage
from pipeline.errors import placed
from pipeline.expansion import target as targets
from pipeline.models import Facts, starts
from pipeline.records.run_folder import StageFolder
from pipeline.training.subject import require_startable, started


def of_stages(config: Config, facts: Facts) -> dict[str, PretrainedConfig]:
    """By the stages' names; the fit of an expansion has its. facts: of the data. Raises UserError for a model that
    cannot be the stage's."""
    found: dict[str, PretrainedConfig] = {}
    for stage in config.stages:
        found[stage.name] = _of_stage(config, stage, facts, found)
        if isinstance(stage, ExpandStage):
            found.setdefault(stage.fit_name, found[stage.name])
    return found


def _of_stage(
    config: Config, stage: TrainStage | ExpandStage, facts: Facts, found: dict[str, PretrainedConfig]
) -> PretrainedConfig:
    sizes = config.models[stage.model]
    if stage.origin is None:
        return models.trained(sizes, facts)
    begun = publish.newest(StageFolder(config.path / stage.name).checkpoints) if stage.kind == "train" else None
    if begun:  # what it started from may have changed
        return in_folder(begun)
    before = found.get(stage.origin) or in_folder(Path(stage.origin))
    if isinstance(stage, ExpandStage):
        with placed(f"stages.{stage.name}"):
            return targets.of_sizes(before, sizes, facts)
    model = started(config, stage, before, facts)
    require_startable(stage, stage.origin, model, sizes, facts)
    with placed(f"stages.{stage.name}.start"):
        starts.fresh(before, model)
    return model


def source_of(stage: ExpandStage | FitStage, found: dict[str, PretrainedConfig]) -> PretrainedConfig:
    """The config of what an expansion grows."""
    return found.get(stage.source) or in_folder(Path(stage.source))


def in_folder(folder: Path) -> PretrainedConfig:
    """The config of a checkpoint that is none of this run's. Raises UserError."""
    return models.read_config(checkpoints.config_file(checkpoints.locate(folder)))[1]
