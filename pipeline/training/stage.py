"""A training stage before its first step: what is known of it (`TrainingPlan`), and what its stage.json says."""

from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PretrainedConfig

from pipeline import models
from pipeline.accounting.flops import Cost
from pipeline.accounting.orthogonalisation import orthogonalisation
from pipeline.checkpoints import manifest, publish
from pipeline.config.schema import Config, TrainStage
from pipeline.data import Prepared, augment, data_of
from pipeline.durations import Pace
from pipeline.errors import UserError
from pipeline.growth.making import MakingCost
from pipeline.optim.rewarm import LEVEL, Ramp
from pipeline.optim.schedules import Rates
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import OF_A_START, StepFlops, TrainFacts, TrainSettings
from pipeline.records.versions import installed
from pipeline.training import data_position, micro_batches, optimizer_kernel, settled
from pipeline.training.fingerprint import Fingerprint
from pipeline.training.hardware import describe
from pipeline.training.length import pace, rates, recorded_facts, require_open_end, sample_cost
from pipeline.training.process_group import World
from pipeline.training.start import origin, require_new_entries
from pipeline.training.subject import Subject, WholeModel
from pipeline.training.target import Target, target_of


@dataclass(frozen=True)
class TrainingPlan:
    """Everything about a stage that is known before the first step. cost: of a sample; making: of a micro-batch; ramp:
    of the rate of new entries."""

    config: Config
    stage: TrainStage
    folder: StageFolder
    data: Prepared
    model: PretrainedConfig
    cost: Cost
    making: MakingCost
    pace: Pace
    rates: Rates
    start: Path | None
    subject: Subject
    target: Target | None
    first_sample: int
    ramp: Ramp = LEVEL

    @property
    def evaluate_every(self) -> int:
        return self.stage.evaluate_every.steps(self.pace)

    @property
    def save_every(self) -> int:
        return self.stage.save_every.steps(self.pace)


def plan_training(config: Config, stage: TrainStage, subject: Subject | None = None) -> TrainingPlan:
    """Resolve a stage: model, FLOPs per step, schedule in steps. subject: what it trains; None: its model. Raises
    UserError."""
    require_open_end(config, stage)
    data = data_of(config, stage)
    folder, target = StageFolder(config.path / stage.name), target_of(config, stage)
    stage = settled.as_begun(micro_batches.as_begun(stage, folder), folder)
    start = start_of(config, stage)
    subject = subject or WholeModel(config, stage)
    model = subject.model(data, start)
    worth = pace(stage, model, data)
    data = replace(data, causal=models.is_causal(model))
    prices = sample_cost(stage, model, data), subject.making()
    schedule, first = rates(config, stage, worth, data), first_sample(config, stage, data, start)
    if stage.rewarm and not publish.newest(folder.checkpoints):
        require_new_entries(start, stage)
    ramp = stage.rewarm.resolve(worth) if stage.rewarm else LEVEL
    shared = config, stage, folder, data, model, *prices, worth, schedule
    return TrainingPlan(*shared, start, subject, target, first, ramp)


def require_best_known(stage: TrainStage, worth: Pace) -> None:
    """Raises UserError where the best checkpoint is to stay, and saved steps are not evaluated."""
    save, evaluate = stage.save_every.steps(worth), stage.evaluate_every.steps(worth)
    if stage.keep.best and save % evaluate:
        raise UserError(
            f"stages.{stage.name}.keep.best: it saves every {save} steps and evaluates every {evaluate}, so most "
            "checkpoints have no evaluation loss; make save_every a multiple of evaluate_every"
        )


def start_of(config: Config, stage: TrainStage) -> Path | None:
    """The checkpoint that the stage began from, as stage.json recorded it; until the stage has one of its own, the one
    to begin from; None: fresh weights. Raises UserError."""
    folder = StageFolder(config.path / stage.name)
    recorded = recorded_facts(folder)
    if recorded and recorded.start and publish.newest(folder.checkpoints):
        return Path(recorded.start)
    return origin(config, stage.origin) if stage.origin else None


def first_sample(config: Config, stage: TrainStage, data: Prepared, start: Path | None) -> int:
    """The number of the first sample that a stage reads; one that has a checkpoint keeps that. Raises UserError where
    it is to go on behind others that are not known."""
    folder = StageFolder(config.path / stage.name)
    recorded = recorded_facts(folder)
    if recorded and publish.newest(folder.checkpoints):
        return recorded.first_sample
    if not stage.data.continues or start is None:
        return 0
    where = f"stages.{stage.name}.data.continue"
    return data_position.first_behind(start, data, config.seed, where, config.data.repeats)


def facts(plan: TrainingPlan, world: World) -> TrainFacts:
    """The content of stage.json, as the stage begins for the first time."""
    stage, sizes = plan.stage, plan.config.models[plan.stage.model]
    return TrainFacts(
        name=stage.name,
        model=stage.model,
        family=sizes.family,
        sizes={"layers": sizes.layers, "hidden": sizes.hidden, "heads": sizes.heads, "mlp": sizes.mlp_units},
        parameters=models.architecture_of(plan.model).parameters,
        kind=stage.kind,
        coefficients=plan.subject.coefficients(),
        origin=stage.origin,
        start=str(plan.start) if plan.start else None,
        steps=plan.rates.steps,
        schedule=dict(vars(plan.rates)),
        settings=_settings(plan, world),
        flops_per_step=step_flops(stage, plan.model, plan.cost, plan.making, world.size),
        samples_per_step=stage.batch,
        tokens_per_step=plan.pace.tokens,
        device=describe(world.device.type),
        versions=installed(),
        fingerprint=Fingerprint.of(plan.config, stage).settings(),
        first_sample=plan.first_sample,
    )


def step_flops(stage: TrainStage, model: PretrainedConfig, cost: Cost, making: MakingCost, ranks: int) -> StepFlops:
    """FLOPs of one optimizer step on so many ranks: the model's for every sample, those of making its weights for every
    micro-batch, those of the update once."""
    passes = stage.batch // micro_batches.size_of(stage, ranks)
    again = stage.batch * cost.recompute + passes * making.recompute
    return StepFlops(
        train=stage.batch * cost.train,
        recompute=again if stage.activation_checkpointing else 0,
        make=passes * (making.forward + making.backward),
        optimizer=orthogonalisation(models.architecture_of(model), stage.optimizer, stage.zero_stage, ranks),
    )


def _settings(plan: TrainingPlan, world: World) -> TrainSettings:
    stage = plan.stage
    return TrainSettings(
        batch=stage.batch,
        micro_batch=micro_batches.size_of(stage, world.size),
        precision=stage.precision,
        gradient_sums=stage.sums,
        matmul_precision=stage.products,
        zero_stage=stage.zero_stage,
        deepspeed=stage.deepspeed.given(),
        world_size=world.size,
        optimizer=stage.optimizer.model_dump(mode="json"),
        optimizer_kernel=optimizer_kernel.of_stage(stage, plan.folder, world.device.type),
        activation_checkpointing=stage.activation_checkpointing,
        seed=plan.config.seed,
        attention=stage.attention,
        block=plan.data.facts["block"] if "stored" in plan.data.facts else None,
        image_draws=augment.DRAWS,
        compile=stage.compile is True,
    )


def started(plan: TrainingPlan, world: World, step: int | None) -> TrainFacts:
    """What stage.json says of a start that goes on from `step`; None: from the beginning."""
    recorded, now = recorded_facts(plan.folder), facts(plan, world)
    if recorded is None:
        return now
    return begun_anew(recorded, now) if step is None else continued(recorded, now, step)


def continued(recorded: TrainFacts, now: TrainFacts, step: int) -> TrainFacts:
    """The facts of a stage that goes on from `step`: what each start has of its own is that of `now`, which is added to
    the others. The fingerprint says which settings may have changed."""
    current = {key: getattr(now, key) for key in (*OF_A_START, "fingerprint", "steps", "schedule")}
    start = now.starts[0].model_copy(update={"step": step})
    return recorded.model_copy(update={**current, "starts": (*recorded.starts, start), "reached": None})


def begun_anew(recorded: TrainFacts, now: TrainFacts) -> TrainFacts:
    """The facts of a stage that has started before and saved nothing."""
    return now.model_copy(update={"starts": (*recorded.starts, *now.starts)})


def facts_line(plan: TrainingPlan, ranks: int) -> str:
    """The stage on so many ranks in one line, for the log."""
    count, learned = models.architecture_of(plan.model).parameters, plan.subject.coefficients()
    what = f"{learned:,} coefficients of {count:,} parameters" if learned else f"{count:,} parameters"
    begin = f"from {plan.start}" if plan.start else "from scratch"
    if fresh := plan.subject.fresh(plan.model, plan.start):
        begin += f" with a fresh head ({', '.join(fresh)})"
    if left := plan.subject.left_behind(plan.model, plan.start):
        begin += f" without {', '.join(left)}"
    flops = step_flops(plan.stage, plan.model, plan.cost, plan.making, ranks).total
    size = f"{plan.rates.steps} steps of {plan.stage.batch} samples"
    return f"{what}, {begin}, {size}, {flops * plan.rates.steps:.2e} FLOPs"


def flops_before(start: Path | None) -> int | None:
    """FLOPs spent on the weights a stage starts from: none from scratch; None, unknown, for a foreign checkpoint."""
    if start is None:
        return 0
    content = manifest.read_if_any(start)
    flops = content.provenance.get("flops") if content else None
    return flops if isinstance(flops, int) else None
