"""What must fit between the stages of a config, its models and its data."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import chain
from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import nearest

if TYPE_CHECKING:
    from pipeline.config.schema import Config, ExpandStage, TrainStage

OTHERS_IN_A_RUN = {"data", "config.yaml", "report.html", "report.json"}
"""What lies beside the stages in the run folder."""
Earlier = dict[str, "TrainStage | ExpandStage"]
"""The stages before one, by name."""


def problems(config: "Config") -> Iterator[str]:
    """All that does not fit, stage after stage."""
    earlier: Earlier = {}
    for stage in config.stages:
        yield from _of_stage(config, stage, earlier)
        earlier.setdefault(stage.name, stage)
    known = [each.name for each in config.stages if each.kind == "train" and each.start is None]
    if config.baseline is not None and config.baseline not in known:
        yield f"baseline: '{config.baseline}' is no training from scratch{nearest(config.baseline, known)}"


def _of_stage(config: "Config", stage: "TrainStage | ExpandStage", earlier: Earlier) -> Iterator[str]:
    """Between a stage, the models and the stages before it."""
    origin, where = stage.origin, f"stages.{stage.name}"
    if stage.name in earlier or stage.name.removesuffix(".draft") in OTHERS_IN_A_RUN:
        yield f"{where}: the name is taken; give each stage its own"
    if stage.model not in config.models:
        yield f"{where}.model: no model '{stage.model}'{nearest(stage.model, config.models)}"
    later = origin in {each.name for each in config.stages}
    if origin and origin not in earlier and (later or not Path(origin).exists()):
        key, known = "source" if stage.kind == "expand" else "start", nearest(origin, earlier)
        yield f"{where}.{key}: '{origin}' is no earlier stage and no folder{known}"
    if stage.kind == "train":
        yield from _of_training(config, stage, earlier)
    elif origin in earlier:
        source, target = (config.models.get(name) for name in (earlier[origin].model, stage.model))
        yield from _shrinkage(stage, source, target) if source and target else ()


def _of_training(config: "Config", stage: "TrainStage", earlier: Earlier) -> Iterator[str]:
    """Between a training stage, the data and the stages before it."""
    yield from _of_stop(config, stage, earlier)
    if stage.data.continues and stage.origin is None:
        yield f"stages.{stage.name}.data.continue: it starts from fresh weights; name a start"
    if stage.data.block and config.data.kind != "text":
        yield f"stages.{stage.name}.data.block: the data are images; leave it out"
    before = config.trained_before(stage)
    yield from chain.problems(stage, before)
    yield from _of_rewarming(config, stage)
    if stage.schedule.continues and before and config.block_of(stage) != config.block_of(before):
        yield f"stages.{stage.name}.data.block: '{before.name}' reads blocks of another length"


def _of_rewarming(config: "Config", stage: "TrainStage") -> Iterator[str]:
    """Entries are new behind an expansion that keeps the state of the others; what a folder holds is seen later."""
    start = next((each for each in config.stages if each.name == stage.start), None)
    where = f"stages.{stage.name}.rewarm"
    if stage.rewarm and (stage.start is None or (start and start.kind == "train")):
        yield f"{where}: it starts from no expansion, and no entry is new; leave it out"
    elif stage.rewarm and start and start.kind == "expand" and start.optimizer_state != "asymmetric":
        yield (
            f"{where}: '{start.name}' has optimizer_state {start.optimizer_state}; which entries are new is known "
            "behind asymmetric alone"
        )


def _of_stop(config: "Config", stage: "TrainStage", earlier: Earlier) -> Iterator[str]:
    """Between a stage's target, the data and the stages before it."""
    if stage.stop is None:
        return
    where, value = f"stages.{stage.name}.stop.{stage.stop.measure}", stage.stop.value
    if stage.stop.measure == "top1" and config.data.kind == "text":
        yield f"{where}: text is evaluated by its loss alone; name eval_loss"
    trained = [name for name, each in earlier.items() if each.kind == "train"]
    if isinstance(value, str) and value not in trained:
        yield f"{where}: '{value}' is no number and no earlier training stage{nearest(value, trained)}"
    elif isinstance(value, str) and config.block_of(earlier[value]) != config.block_of(stage):
        lengths = f"{config.block_of(earlier[value])} tokens, this one in blocks of {config.block_of(stage)}"
        yield f"{where}: '{value}' is evaluated in blocks of {lengths}; name a number"


def _shrinkage(stage: "ExpandStage", source: ModelSizes, target: ModelSizes) -> Iterator[str]:
    for key, size in (("layers", "layers"), ("hidden", "hidden"), ("heads", "heads"), ("mlp", "mlp_units")):
        if getattr(target, size) < getattr(source, size):
            yield (
                f"stages.{stage.name}: target model '{stage.model}' has {key} {getattr(target, size)}, fewer than its "
                f"source's {getattr(source, size)}; an expansion cannot shrink"
            )
