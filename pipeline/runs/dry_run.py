"""`lemon run CONFIG --dry-run`: what a run would do and need, checked as a run checks it; nothing is written.

The cluster is the one that the options describe, not the machine that is asked.
"""

import math
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from pipeline import models
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
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.config import dump
from pipeline.config.schema import Config, ExpandStage, FitStage, Stage, TrainStage
from pipeline.data import as_read, evaluated, evaluation_passes
from pipeline.data.inventory import Inventory, inventory
from pipeline.durations import Pace
from pipeline.errors import UserError
from pipeline.expansion import fit as fits
from pipeline.growth.making import NO_MAKING, FitNeeds, MakingCost
from pipeline.models.architecture import Architecture
from pipeline.models.optimizer_groups import state_numbers
from pipeline.optim.schedules import Rates
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import TrainFacts
from pipeline.runs import preflight
from pipeline.runs.run import layout_for
from pipeline.training import launcher
from pipeline.training.deepspeed_config import deepspeed_config
from pipeline.training.environment import Launched
from pipeline.training.launcher import Start
from pipeline.training.length import has_ended, pace, rates, sample_cost
from pipeline.training.micro_batches import as_begun, size_of
from pipeline.training.stage import step_flops
from pipeline.training.start import require_whole_facts

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
class DryRun:
    """What a run would do and need. content: all of it, JSON-able."""

    config: Config
    content: dict[str, Any]


def dry_run(config: Config, start: Start, arguments: Sequence[str]) -> DryRun:
    """Check a config as a run does, and say what would follow. arguments: of the command, behind `lemon run`. Raises
    UserError with what a run would say."""
    cluster = Cluster.of(config, start)
    preflight.before_data(config, [cluster.ranks], start.allowed)
    notes = [*_notes(config, cluster), *_settled_later(config, cluster), *_checkpoints(config, cluster)]
    there = inventory(config.data, config.seed, config.path / "data")
    configs = preflight.after_data(config, there.data, counted=there.prepared)
    stages = [_stage(config, stage, cluster, there, configs) for stage in _with_fits(config)]
    there_already = {stage["name"]: _used(config.path / stage["name"] / "checkpoints") for stage in stages}
    needed = sum(max(0, stage["disk"] - there_already[stage["name"]]) for stage in stages)
    disk = {"needed": needed, "free": _free(config.path)}
    if disk["needed"] > disk["free"]:
        notes.append(f"the checkpoints need {amount(disk['needed'])} of disk, {amount(disk['free'])} are free")
    content = {
        "name": config.name,
        "folder": str(config.path),
        "config": config.model_dump(mode="json"),
        "cluster": {**asdict(cluster), "ranks": cluster.ranks},
        "launch": list(_launch(cluster, start, arguments)),
        "data": {"facts": _facts(there), "prepared": there.prepared, "lines": dict(there.lines)},
        "stages": stages,
        "flops": _total(stages),
        "disk": disk,
        "notes": notes,
    }
    return DryRun(config, content)


def _with_fits(config: Config) -> Iterator[Stage | FitStage]:
    """The stages in their order, before an expansion the fit of its method."""
    for stage in config.stages:
        if isinstance(stage, ExpandStage) and (fit := fits.unfinished(config, stage)):
            yield fit
        yield stage


def _notes(config: Config, cluster: Cluster) -> Iterator[str]:
    """What of this machine would be another thing on the cluster's."""
    gpus = torch.cuda.device_count() if os.environ.get("DS_ACCELERATOR") != "cpu" else 0
    if config.processes == "auto":
        yield f"processes: auto is {cluster.processes} on this machine; name the number for another one"
    elif gpus and cluster.processes > gpus:
        yield f"processes {cluster.processes}: this machine has {gpus} GPU(s), and would refuse to train so many"


def _settled_later(config: Config, cluster: Cluster) -> Iterator[str]:
    """What is found out only when a stage begins."""
    trained = [stage for stage in config.stages if isinstance(stage, TrainStage)]
    for stage in (as_begun(stage, StageFolder(config.path / stage.name)) for stage in trained):
        if stage.micro_batch == "auto":
            most = size_of(stage, cluster.ranks)
            yield f"stages.{stage.name}.micro_batch: auto: shown is {most}, the most; as it begins, what fits is found"


def _checkpoints(config: Config, cluster: Cluster) -> Iterator[str]:
    """Check what the stages will load, as far as it is there. A run sets a damaged checkpoint aside; this tells it."""
    readable = []
    for stage in config.stages:
        newest = publish.newest(StageFolder(config.path / stage.name).checkpoints)
        try:
            if newest:
                require_whole_facts(newest)
            readable.append(stage)
        except UserError as error:
            yield f"{error}; a run would go on from an earlier one"
    preflight.checkpoints_fit(config, readable, cluster.ranks)


def _facts(there: Inventory) -> dict[str, Any]:
    facts = {key: value for key, value in there.data.facts.items() if key != "class_names"}
    return facts if there.counted else facts | {"training": None}


def _launch(cluster: Cluster, start: Start, arguments: Sequence[str]) -> Iterator[str]:
    """What starts the run: a command for each node."""
    command = ["lemon", "run", *arguments, *(f"--allow={setting}" for setting in sorted(start.allowed))]
    if isinstance(start, Launched) or cluster.nodes == 1:
        yield shlex.join(command)
        return
    for rank in range(cluster.nodes):
        place = ["--nodes", start.words, "--node-rank", rank, "--master-addr", start.address]
        yield shlex.join([*command, *map(str, place), "--master-port", str(start.port)])


def _stage(
    config: Config,
    stage: Stage | FitStage,
    cluster: Cluster,
    there: Inventory,
    stage_configs: dict[str, PretrainedConfig],
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
    training = _training(config, stage, cluster, there, model, known, needs.making if needs else NO_MAKING)
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
    model: PretrainedConfig,
    known: bool,
    making: MakingCost,
) -> dict[str, Any]:
    """Batch, schedule and FLOPs. known: whether the schedule's length is."""
    worth = pace(stage, model, there.data)
    price = sample_cost(stage, model, there.data)
    step = step_flops(stage, model, price, making, cluster.ranks)
    samples = len(evaluated(config.data.evaluate, config.data.kind, there.data.facts["evaluation"]))
    derived = deepspeed_config(stage, cluster.ranks)
    batch = {
        "samples": stage.batch,
        "micro_batch": derived["train_micro_batch_size_per_gpu"],
        "accumulation": derived["gradient_accumulation_steps"],
        "tokens": worth.tokens,
        "flops": step.total,
    }
    passes = evaluation_passes(samples, batch["micro_batch"], cluster.ranks)
    evaluation = samples * price.forward + passes * making.forward
    plan: Rates | None = rates(config, stage, worth, there.data) if known else None
    result = {
        "zero_stage": stage.zero_stage,
        "precision": stage.precision,
        "gradient_sums": stage.sums,
        "matmul_precision": stage.products,
        "deepspeed": stage.deepspeed.given(),
        "save": stage.save,
        "stop": stage.stop.model_dump(mode="json", exclude_none=True) if stage.stop else None,
        "batch": batch,
        "schedule": None,
    }
    if plan is None:
        return {**result, "flops": None}
    epochs = plan.steps * stage.batch / there.data.size if there.counted else None
    flops = _flops(stage, plan, there, worth, step.total, evaluation)
    return {**result, "schedule": {**_schedule(plan), "epochs": epochs}, "flops": flops}


def _schedule(plan: Rates) -> dict[str, Any]:
    """vars(plan), and the rate at some steps."""
    last = plan.steps - 1
    warm = math.ceil(plan.warmup - plan.begin)
    steps = sorted({0, warm, *(last * part // 4 for part in range(1, 5))} & set(range(plan.steps)))
    points = [plan.at(last * point // (PLOTTED - 1)) for point in range(PLOTTED)]
    return {**vars(plan), "rates": {step: plan.at(step) for step in steps}, "plot": points}


def _flops(
    stage: TrainStage, plan: Rates, there: Inventory, worth: Pace, step: int, evaluation: int
) -> dict[str, int] | None:
    """Of training (with recomputation) and evaluation at its steps, the first and the last included. None where nothing
    tells how often is evaluated. step, evaluation: of one."""
    if stage.evaluate_every.unit == "epochs" and not there.counted:
        return None
    every = stage.evaluate_every.steps(worth)
    evaluations = 1 + plan.steps // every + (plan.steps % every > 0)
    train, evaluating = plan.steps * step, evaluations * evaluation
    return {"train": train, "evaluation": evaluating, "total": train + evaluating}


def _total(stages: list[dict[str, Any]]) -> int | None:
    """FLOPs of all stages; None where those of one are not known."""
    found = [stage["flops"] for stage in stages if stage["kind"] != "expand"]
    return None if None in found else sum(each["total"] for each in found)


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


def _free(folder: Path) -> int:
    """Bytes on the disk that the folder will lie on."""
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def resolved(run: DryRun) -> str:
    """The config with every default, as YAML."""
    return dump(run.config)
