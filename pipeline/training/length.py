"""How long a training stage is: what a step of it is worth, its schedule in steps, and whether it has ended."""

import math
from dataclasses import replace
from fractions import Fraction

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.accounting.flops import Cost, cost
from pipeline.checkpoints import publish
from pipeline.config.schema import Config, ExpandStage, TrainStage
from pipeline.data import Prepared, data_of
from pipeline.durations import Pace, share
from pipeline.errors import UserError, placed
from pipeline.optim.schedules import WHOLE, Rates, Span
from pipeline.records.run_folder import StageFolder, step_of
from pipeline.records.stage_facts import ExpandFacts, TrainFacts
from pipeline.training.fingerprint import begun_from
from pipeline.training.target import last_evaluation, target_of


def recorded_facts(folder: StageFolder) -> TrainFacts | None:
    """The content of stage.json, None before the stage has started. Raises UserError when the stage was an
    expansion."""
    facts = folder.facts
    if isinstance(facts, ExpandFacts):
        raise UserError(
            f"{folder.facts_file}: the stage was an expansion, the config says train; take another folder (folder=…)"
        )
    return facts


def sample_cost(stage: TrainStage, model: PretrainedConfig, data: Prepared) -> Cost:
    """FLOPs of a sample."""
    positions = models.of_config(model).positions(model, data.facts)
    every, drops = int(stage.activation_checkpointing) or 1, models.drops_branches(model)
    return cost(models.architecture_of(model), positions, every, drops=drops)


def pace(stage: TrainStage, model: PretrainedConfig, data: Prepared) -> Pace:
    """What one optimizer step of the stage is worth; its FLOPs are those of training, recomputation included."""
    price = sample_cost(stage, model, data)
    per_sample = price.train + (price.recompute if stage.activation_checkpointing else 0)
    return Pace(stage.batch, stage.batch * data.facts["tokens_per_sample"], stage.batch * per_sample, data.size)


def rates(config: Config, stage: TrainStage, worth: Pace, data: Prepared) -> Rates:
    """The stage's schedule in steps. A stage that was begun keeps those it began with: a duration in FLOPs would become
    another number of steps under other activation checkpointing. data: as the stage reads them. Raises UserError when
    the schedule does not fit, or ends before what is trained already."""
    folder = StageFolder(config.path / stage.name)
    recorded, begin = recorded_facts(folder), begun_at(config, stage, data)
    keeps = recorded and (recorded.status == "finished" or publish.newest(folder.checkpoints))
    with placed(f"stages.{stage.name}.schedule"):
        resolved = stage.schedule.resolve(worth, Span(begin, _end(stage)))
        return _as_begun(resolved, recorded, folder, stage) if recorded and keeps else resolved


def _end(stage: TrainStage) -> Fraction:
    """The share of its schedule's horizon behind which a stage ends, where nothing else says how long it is."""
    return share(stage.grow_at) if stage.grow_at else WHOLE.end


def begun_at(config: Config, stage: TrainStage, data: Prepared) -> Fraction:
    """Where in its schedule a stage begins, in the unit of the horizon: where the training before it has ended, or will
    end as it is planned."""
    before = config.trained_before(stage) if stage.schedule.continues else None
    if before is None:
        return WHOLE.begin
    facts = recorded_facts(StageFolder(config.path / before.name))
    if facts:
        worth = _recorded_pace(facts, data)
    else:
        worth = pace(before, models.trained(config.models[before.model], data.facts), data)
    ended = facts.end if facts and has_ended(config, before) else None
    trained = rates(config, before, worth, data).steps if ended is None else ended
    return begun_at(config, before, data) + trained * worth.of(stage.schedule.horizon.unit)


def _recorded_pace(facts: TrainFacts, data: Prepared) -> Pace:
    """That at which a stage has counted its steps: where it began, whatever its layers did on a later start."""
    cost = facts.starts[0].flops_per_step
    return Pace(facts.samples_per_step, facts.tokens_per_step, cost.train + cost.recompute, data.size)


def _as_begun(resolved: Rates, recorded: TrainFacts, folder: StageFolder, stage: TrainStage) -> Rates:
    """The schedule that was recorded; only where its `steps` or `grow_at` are others now, they count."""
    begun = replace(resolved, **{"horizon": recorded.steps, **recorded.schedule})
    if not _other_steps(recorded, stage):
        return begun
    planned, done = math.ceil(_end(stage) * begun.horizon - begun.begin), _trained(folder, recorded)
    steps = resolved.steps if stage.schedule.steps else planned
    if steps < done:
        key = f"steps up to grow_at {stage.grow_at}" if stage.grow_at else "steps"
        raise UserError(f"{key}: they are {steps}, and the stage has trained {done}; ask for at least as many")
    return replace(begun, steps=steps)


def _other_steps(recorded: TrainFacts, stage: TrainStage) -> bool:
    """Whether the config asks for another length of the stage than when it was last started."""
    before = recorded.fingerprint.get("stage", {})
    schedule, steps = before.get("schedule", {}), str(stage.schedule.steps) if stage.schedule.steps else None
    return bool(schedule) and (schedule.get("steps"), before.get("grow_at")) != (steps, stage.grow_at)


def _trained(folder: StageFolder, recorded: TrainFacts) -> int:
    """Steps that nothing takes back."""
    newest = publish.newest(folder.checkpoints)
    return max(recorded.end if recorded.status == "finished" else 0, (step_of(newest) or 0) if newest else 0)


def has_ended(config: Config, stage: TrainStage | ExpandStage) -> bool:
    """Whether nothing is left to do of a stage by what the config says now. Raises UserError."""
    return StageFolder(config.path / stage.name).finished and not goes_on(config, stage)


def goes_on(config: Config, stage: TrainStage | ExpandStage) -> bool:
    """Whether the config asks more of a stage that has ended: more steps, or to go beyond the target that ended it.
    Raises UserError."""
    folder = StageFolder(config.path / stage.name)
    facts = folder.facts
    if isinstance(stage, ExpandStage) or not isinstance(facts, TrainFacts) or facts.status != "finished":
        return False
    if facts.end >= _steps(config, stage, facts):
        return False
    target, last = target_of(config, stage), last_evaluation(folder)
    return target is None or last is None or not target.met_by(vars(last))


def _steps(config: Config, stage: TrainStage, facts: TrainFacts) -> int:
    """Of a begun stage, as the config says now."""
    if not _other_steps(facts, stage):
        return facts.steps
    data, folder = data_of(config, stage), StageFolder(config.path / stage.name)
    if newest := publish.newest(folder.checkpoints):
        _, model = models.read_config(newest / checkpoints.CONFIG)
    else:
        model = models.trained(config.models[stage.model], data.facts)
    return rates(config, stage, pace(stage, model, data), data).steps


def require_open_end(config: Config, stage: TrainStage | ExpandStage) -> None:
    """Raises UserError where a stage that has ended is to go on, and others have begun from its end, or its end is
    gone."""
    if not goes_on(config, stage):
        return
    path, behind = config.path / stage.name, begun_from(config, stage.name)
    facts = recorded_facts(StageFolder(path))
    assert facts is not None
    where = f"{path}: ended at step {facts.end}, and the config asks for more"
    if behind:
        folders = ", ".join(str(config.path / name) for name in behind)
        raise UserError(
            f"{where}, but {', '.join(behind)} began from that end; take back what has changed of its stop, "
            f"grow_at or schedule.steps, take another folder (folder=…), or remove {folders}"
        )
    if not publish.newest(StageFolder(path).checkpoints):
        raise UserError(f"{where}, but it has no checkpoint to go on from; take another folder (folder=…)")


def reopen(config: Config, stage: TrainStage | ExpandStage) -> None:
    """Have a stage that is to go on count as interrupted at its end. Raises UserError as `require_open_end` does."""
    require_open_end(config, stage)
    if goes_on(config, stage):
        folder = StageFolder(config.path / stage.name)
        facts = recorded_facts(folder)
        assert facts is not None
        folder.begin(facts)
