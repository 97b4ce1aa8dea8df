"""What the stages of a run need, from its config: schedule, FLOPs, memory of a rank, disk. Nothing is written.

`lemon run --dry-run` and `lemon flops` both print these numbers.
"""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from pipeline import models
from pipeline.accounting import head
from pipeline.accounting.estimate import Sample
from pipeline.accounting.memory import (
    BF16,
    FP32,
    Buffers,
    TrainedGroup,
    activations,
    model_states,
    of_new_entries,
    parameter_groups,
)
from pipeline.accounting.save_copy import save_copy
from pipeline.checkpoints import CheckpointLayout, publish
from pipeline.config.schema import Config, ExpandStage, FitStage, Stage, TrainStage
from pipeline.data import Prepared, as_read, evaluated, evaluation_passes
from pipeline.data.inventory import Inventory, inventory
from pipeline.durations import Pace
from pipeline.expansion import fit as fits
from pipeline.growth.making import NO_MAKING, FitNeeds, MakingCost
from pipeline.models.architecture import Architecture
from pipeline.models.optimizer_groups import state_numbers
from pipeline.optim.schedules import Rates
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import StepFlops, TrainFacts
from pipeline.runs import preflight
from pipeline.runs.run import layout_for
from pipeline.training import launcher
from pipeline.training.deepspeed_config import deepspeed_config
from pipeline.training.environment import Launched
from pipeline.training.launcher import Start
from pipeline.training.length import has_ended, pace, rates, sample_cost
from pipeline.training.micro_batches import as_begun
from pipeline.training.stage import step_flops

PLOTTED = 48
"""Points of a schedule's plot."""


@dataclass(frozen=True)
class Cluster:
    """Who would train: on each of the nodes so many processes."""

    nodes: int
    processes: int

    @property
    def ranks(self) -> int:
        return self.nodes * self.processes

    @classmethod
    def of(cls, config: Config, start: Start) -> "Cluster":
        """That which the command describes, whatever this machine has."""
        if isinstance(start, Launched):
            return cls(max(1, start.world_size // start.local_world_size), start.local_world_size)
        configured = config.processes
        return cls(start.count, launcher.processes(configured) if configured == "auto" else configured)


@dataclass(frozen=True)
class Needs:
    """stages: of each, in their order, what a dry run prints of it (JSON-able), the fits of learned methods included.
    there: the data that they are to read."""

    there: Inventory
    stages: list[dict[str, Any]]
    disk: int
    """Bytes of checkpoints at most, besides those that lie there."""

    @property
    def flops(self) -> int | None:
        """Of all stages, evaluation included; None where those of one are not known."""
        found = [stage["flops"] for stage in self.stages if stage["kind"] != "expand"]
        return None if None in found else sum(each["total"] for each in found)


def of_run(config: Config, cluster: Cluster, head_share: float | None = None) -> Needs:
    """What every stage needs on the cluster, behind `preflight.before_data`. head_share: FLOPs are counted as if the
    language-model heads ran at this share of a block's positions; None: as they are trained. Raises UserError with what
    a run would say behind its data."""
    there = inventory(config.data, config.seed, config.path / "data")
    configs = preflight.after_data(config, there.data, counted=there.prepared)
    stages = [_stage(config, stage, cluster, there, configs, head_share) for stage in _with_fits(config)]
    there_already = {stage["name"]: _used(config.path / stage["name"] / "checkpoints") for stage in stages}
    needed = sum(max(0, stage["disk"] - there_already[stage["name"]]) for stage in stages)
    return Needs(there, stages, needed)


def _with_fits(config: Config) -> Iterator[Stage | FitStage]:
    """The stages in their order, before an expansion the fit of its method."""
    for stage in config.stages:
        if isinstance(stage, ExpandStage) and (fit := fits.unfinished(config, stage)):
            yield fit
        yield stage


def _stage(
    config: Config,
    stage: Stage | FitStage,
    cluster: Cluster,
    there: Inventory,
    stage_configs: dict[str, PretrainedConfig],
    head_share: float | None,
) -> dict[str, Any]:
    there = replace(there, data=as_read(there.data, config, stage))
    model = stage_configs[stage.name]
    architecture = models.architecture_of(model)
    shared = {"name": stage.name, "kind": stage.kind, "model": stage.model, "parameters": architecture.parameters}
    shared |= {"origin": stage.origin, "status": _status(config, stage)}
    if isinstance(stage, ExpandStage):
        return {**shared, "method": stage.method.name, "disk": _expansion_on_disk(config, stage, cluster, architecture)}
    folder = StageFolder(config.path / stage.name)
    stage, cluster = as_begun(stage, folder), _as_trained(config, stage, cluster)
    known = there.counted or not preflight.in_epochs(config, stage)
    needs = preflight.fit_needs(config, stage, stage_configs) if isinstance(stage, FitStage) else None
    head.require_share(model, head_share)
    counted = replace(there.data, facts=head.with_share(there.data.facts, head_share))
    making = needs.making if needs else NO_MAKING
    training = _training(config, stage, cluster, there, counted, model, known, making)
    steps = training["schedule"]["steps"] if training["schedule"] else 0
    learned, kept = _counts(stage, architecture, needs)
    memory = _memory(stage, cluster, there, model, needs)
    if (added := preflight.entries_added(config, stage, stage_configs)) is not None:
        numbers = added.numbers(architecture)
        memory |= {"new_entries": of_new_entries(*numbers, stage.zero_stage, cluster.ranks)}
    return {
        **shared,
        **training,
        **({"coefficients": learned} if needs else {}),
        "memory": memory,
        "disk": stage.keep.most(steps) * _on_disk(stage, cluster, learned, kept),
    }


def _as_trained(config: Config, stage: TrainStage, cluster: Cluster) -> Cluster:
    """Of a finished stage the ranks of its last start, whatever those of this command are."""
    facts = StageFolder(config.path / stage.name).facts
    if isinstance(facts, TrainFacts) and has_ended(config, stage):
        return Cluster(1, facts.settings.world_size)
    return cluster


def _status(config: Config, stage: Stage) -> str:
    folder = StageFolder(config.path / stage.name)
    if has_ended(config, stage):
        return "finished"
    newest = publish.newest(folder.checkpoints)
    return f"goes on from {newest.name}" if newest else "to do"


def _training(
    config: Config,
    stage: TrainStage,
    cluster: Cluster,
    there: Inventory,
    counted: Prepared,
    model: PretrainedConfig,
    known: bool,
    making: MakingCost,
) -> dict[str, Any]:
    """Batch, schedule and FLOPs. counted: the data that FLOPs are counted by; known: whether the schedule's length
    is."""
    worth = pace(stage, model, there.data)
    price, positions = sample_cost(stage, model, counted), models.of_config(model).positions(model, counted.facts)
    step = step_flops(stage, model, price, making, cluster.ranks)
    samples = len(evaluated(config.data.evaluate, config.data.kind, there.data.facts["evaluation"]))
    batch = _batch(stage, cluster, worth, step)
    passes = evaluation_passes(samples, batch["micro_batch"], cluster.ranks)
    evaluation = samples * price.forward + passes * making.forward
    sample = Sample.of(model, positions, price, bool(stage.activation_checkpointing))
    result = {**_settings(stage), "sample": sample.model_dump(), "batch": batch, "schedule": None, "flops": None}
    if not known:
        return result
    plan = rates(config, stage, worth, there.data)
    epochs = plan.steps * stage.batch / there.data.size if there.counted else None
    flops = _flops(stage, plan, there, worth, step, evaluation)
    return {**result, "schedule": {**_schedule(plan), "epochs": epochs}, "flops": flops}


def _settings(stage: TrainStage) -> dict[str, Any]:
    """What of a stage decides speed, memory and numbers."""
    return {
        "zero_stage": stage.zero_stage,
        "precision": stage.precision,
        "gradient_sums": stage.sums,
        "matmul_precision": stage.products,
        "activation_checkpointing": int(stage.activation_checkpointing),
        "deepspeed": stage.deepspeed.given(),
        "save": stage.save,
        "stop": stage.stop.model_dump(mode="json", exclude_none=True) if stage.stop else None,
    }


def _batch(stage: TrainStage, cluster: Cluster, worth: Pace, step: StepFlops) -> dict[str, int]:
    """Of one step. flops: all that are computed; model_flops: forward and backward of the model."""
    derived = deepspeed_config(stage, cluster.ranks)
    return {
        "samples": stage.batch,
        "micro_batch": derived["train_micro_batch_size_per_gpu"],
        "accumulation": derived["gradient_accumulation_steps"],
        "tokens": worth.tokens,
        "flops": step.total,
        "model_flops": step.train,
    }


def _schedule(plan: Rates) -> dict[str, Any]:
    """vars(plan), and the rate at some steps."""
    last = plan.steps - 1
    warm = math.ceil(plan.warmup - plan.begin)
    steps = sorted({0, warm, *(last * part // 4 for part in range(1, 5))} & set(range(plan.steps)))
    points = [plan.at(last * point // (PLOTTED - 1)) for point in range(PLOTTED)]
    return {**vars(plan), "rates": {step: plan.at(step) for step in steps}, "plot": points}


def _flops(
    stage: TrainStage, plan: Rates, there: Inventory, worth: Pace, step: StepFlops, evaluation: int
) -> dict[str, int] | None:
    """Of training (`train`: all that is computed; `model`: forward and backward of the model alone) and evaluation at
    its steps, the first and the last included. None where nothing tells how often is evaluated. step, evaluation: of
    one."""
    if stage.evaluate_every.unit == "epochs" and not there.counted:
        return None
    every = stage.evaluate_every.steps(worth)
    evaluations = 1 + plan.steps // every + (plan.steps % every > 0)
    train, evaluating = plan.steps * step.total, evaluations * evaluation
    return {"train": train, "model": plan.steps * step.train, "evaluation": evaluating, "total": train + evaluating}


def _memory(
    stage: TrainStage, cluster: Cluster, there: Inventory, model: PretrainedConfig, needs: FitNeeds | None
) -> dict[str, Any]:
    """Bytes of a rank in every ZeRO stage, the activations, which are the same in all, and the copy that is saved.
    needs: of a fit, which trains coefficients and holds a source and made weights besides."""
    architecture, bf16 = models.architecture_of(model), stage.in_16_bits
    groups = parameter_groups(architecture, stage.optimizer)
    if needs:
        groups = [TrainedGroup(tuple(needs.coefficients), len(stage.optimizer.slots))]
    besides = (BF16 if bf16 else FP32) * (needs.fixed + needs.made) if needs else 0
    derived = deepspeed_config(stage, cluster.ranks)
    stages = {}
    for zero_stage in range(3 if needs else 4):
        states = model_states(
            groups,
            zero_stage=zero_stage,
            ranks=cluster.ranks,
            bf16=bf16,
            accumulates=derived["gradient_accumulation_steps"] > 1,
            fp32_sums=stage.sums_in_fp32,
            buffers=Buffers.of(stage, on_gpu=True),
        )
        stages[zero_stage] = {**asdict(states), "held": states.held}
    estimate = activations(
        architecture,
        models.of_config(model).positions(model, there.data.facts),
        micro_batch=derived["train_micro_batch_size_per_gpu"],
        bf16=stage.precision != "fp32",
        every=int(stage.activation_checkpointing),
    )
    copy = save_copy(stage, *_counts(stage, architecture, needs), cluster.ranks)
    memory = {"zero_stages": stages, "activations": estimate, "save_copy": copy, "besides": besides}
    return memory | {"offloaded": stage.deepspeed.offloads}


def _counts(stage: TrainStage, architecture: Architecture, needs: FitNeeds | None) -> tuple[int, int]:
    """What is trained, and the numbers that the optimizer keeps of it."""
    if needs:
        learned = sum(needs.coefficients)
        return learned, len(stage.optimizer.slots) * learned
    return architecture.parameters, state_numbers(architecture, stage.optimizer)


def _on_disk(stage: TrainStage, cluster: Cluster, parameters: int, kept: int) -> int:
    """Bytes of one checkpoint."""
    layout = CheckpointLayout.of(stage, cluster.ranks)
    return layout.kind.bytes_on_disk(parameters, kept, layout)


def _expansion_on_disk(config: Config, stage: ExpandStage, cluster: Cluster, architecture: Architecture) -> int:
    reader = next(iter(config.continued_by(stage.name)), None)
    layout = layout_for(stage, reader, cluster.ranks)
    kept = state_numbers(architecture, reader.optimizer) if reader and layout.kind.holds_optimizer else 0
    return layout.kind.bytes_on_disk(architecture.parameters, kept, layout)


def _used(folder: Path) -> int:
    """Bytes of the checkpoints in a folder, as far as no run removes them meanwhile."""
    size = 0
    for path in folder.glob("[!.]*/**/*"):
        with suppress(FileNotFoundError):
            size += path.stat().st_size if path.is_file() else 0
    return size
