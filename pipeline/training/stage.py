"""The training stage, as every worker runs it: build, resume or start, loop, save.

All randomness is a function of (seed, step); a resumed run ends with the numbers of an uninterrupted one.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.accounting.flops import Cost, cost
from pipeline.checkpoints import manifest, publish
from pipeline.config.fingerprint import Fingerprint
from pipeline.config.schema import Config, TrainStage
from pipeline.data import Prepared, open_prepared
from pipeline.durations import Pace
from pipeline.errors import UserError
from pipeline.optim.schedules import Rates
from pipeline.records.run_folder import StageFolder
from pipeline.records.versions import installed
from pipeline.training.engine import World
from pipeline.training.hardware import describe


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a stage that is known before the first step."""

    config: Config
    stage: TrainStage
    folder: StageFolder
    data: Prepared
    model: PretrainedConfig
    cost: Cost
    pace: Pace
    rates: Rates
    start: Path | None

    @property
    def evaluate_every(self) -> int:
        return self.stage.evaluate_every.steps(self.pace)

    @property
    def save_every(self) -> int:
        return self.stage.save_every.steps(self.pace)


def plan_training(config: Config, stage: TrainStage) -> TrainingPlan:
    """Resolve a stage: model, FLOPs per step, schedule in steps. Raises UserError."""
    data = open_prepared(config.path / "data")
    folder = StageFolder(config.path / stage.name)
    start = _start(config, stage, folder)
    model = _model_config(config, stage, data, start)
    worth = pace(stage, model, data)
    return TrainingPlan(
        config, stage, folder, data, model, _cost(model, data), worth, rates(folder, stage, worth), start
    )


def _cost(model: PretrainedConfig, data: Prepared) -> Cost:
    return cost(models.architecture_of(model), models.of_config(model).positions(model, data.facts))


def pace(stage: TrainStage, model: PretrainedConfig, data: Prepared) -> Pace:
    """What one optimizer step of the stage is worth; its FLOPs are those of training, recomputation included."""
    price = _cost(model, data)
    per_sample = price.train + (price.recompute if stage.activation_checkpointing else 0)
    return Pace(stage.batch, stage.batch * data.facts["tokens_per_sample"], stage.batch * per_sample, data.size)


def rates(folder: StageFolder, stage: TrainStage, worth: Pace) -> Rates:
    """The stage's schedule in steps. A stage that was begun keeps those it began with: a duration in FLOPs would become
    another number of steps under other activation checkpointing. Raises UserError when the schedule does not fit."""
    begun = folder.facts.get("schedule")
    return replace(stage.schedule.resolve(worth), **(begun or {}))


def _start(config: Config, stage: TrainStage, folder: StageFolder) -> Path | None:
    """The checkpoint that the stage began from, as stage.json recorded it; before that, the one to begin from."""
    recorded = folder.facts.get("start")
    return Path(recorded) if recorded else origin(config, stage.start)


def origin(config: Config, name: str | None) -> Path | None:
    """The checkpoint that a stage starts from: an earlier stage's newest, or a folder's. Raises UserError."""
    if name is None:
        return None
    ours = name in {stage.name for stage in config.stages}
    return checkpoints.locate(config.path / name if ours else Path(name))


def _model_config(config: Config, stage: TrainStage, data: Prepared, start: Path | None) -> PretrainedConfig:
    """From scratch by the config's sizes; else the start's own config (an expansion may have changed its epsilon)."""
    sizes = config.models[stage.model]
    wanted = models.trained(sizes, data.facts)
    if start is None:
        return wanted
    newest = publish.newest(config.path / stage.name / "checkpoints")
    _, held = models.read_config((newest or start) / checkpoints.CONFIG)
    shapes = [
        {row.name: architecture.shape(row) for row in architecture.rows()}
        for architecture in (models.architecture_of(held), models.architecture_of(wanted))
    ]
    if shapes[0] != shapes[1]:
        name = next(n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n))
        raise UserError(
            f"{start}: '{name}' has shape {shapes[0].get(name)} there and {shapes[1].get(name)} in model '{stage.model}'; "
            f"name the model that was expanded in stages.{stage.name}.model"
        )
    return held


def facts(plan: TrainingPlan, world: World) -> dict:
    """What stage.json says of a training stage."""
    stage, sizes = plan.stage, plan.config.models[plan.stage.model]
    return {
        "kind": "train",
        "name": stage.name,
        "model": stage.model,
        "family": sizes.family,
        "sizes": {"layers": sizes.layers, "hidden": sizes.hidden, "heads": sizes.heads, "mlp": sizes.mlp_units},
        "parameters": models.architecture_of(plan.model).parameters,
        "origin": stage.start,
        "start": str(plan.start) if plan.start else None,
        "steps": plan.rates.steps,
        "schedule": vars(plan.rates),
        "settings": {
            "batch": stage.batch,
            "micro_batch": stage.micro_batch or stage.batch // world.size,
            "precision": stage.precision,
            "zero_stage": stage.zero_stage,
            "world_size": world.size,
            "optimizer": stage.optimizer.model_dump(mode="json"),
            "activation_checkpointing": stage.activation_checkpointing,
            "seed": plan.config.seed,
        },
        "flops_per_step": {
            "train": stage.batch * plan.cost.train,
            "recompute": stage.batch * plan.cost.recompute if stage.activation_checkpointing else 0,
        },
        "samples_per_step": stage.batch,
        "tokens_per_step": plan.pace.tokens,
        "device": describe(world.device.type),
        "versions": installed(),
        "fingerprint": Fingerprint.of(plan.config, stage).settings(),
    }


MAY_CHANGE = ("settings", "flops_per_step", "device", "versions")
"""Facts that a stage may be continued with others of; its fingerprint says which settings may change."""


def continued(recorded: dict, now: dict, step: int) -> dict:
    """The facts of a stage that goes on from `step`: those of `now`, and under `earlier` what others held until then."""
    changed = {key: recorded[key] for key in MAY_CHANGE if key in recorded and recorded[key] != now[key]}
    earlier = recorded.get("earlier", []) + ([{"until_step": step, **changed}] if changed else [])
    kept = {key: now[key] for key in (*MAY_CHANGE, "fingerprint")}
    return {**recorded, **kept, **({"earlier": earlier} if earlier else {})}


def facts_line(plan: TrainingPlan) -> str:
    """The stage in one line, for the terminal."""
    count = models.architecture_of(plan.model).parameters
    begin = f"from {plan.start}" if plan.start else "from scratch"
    return f"{count:,} parameters, {begin}, {plan.rates.steps} steps of {plan.stage.batch} samples, {plan.pace.flops * plan.rates.steps:.2e} FLOPs"


def _flops_of(start: Path | None) -> int | str:
    """FLOPs spent on the weights a stage starts from: none from scratch, unknown for a foreign checkpoint."""
    if start is None:
        return 0
    content = manifest.read_if_any(start)
    return content.provenance.get("flops", "unknown") if content else "unknown"
