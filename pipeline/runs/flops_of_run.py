"""`lemon flops` of a run's config: the numbers of its dry run, model FLOPs and hardware FLOPs apart."""

from pathlib import Path
from typing import Any

from pipeline.accounting.estimate import Estimate, Memory, RunEstimate, Sample, StageEstimate, Training
from pipeline.config.schema import Config
from pipeline.runs import preflight, stage_needs
from pipeline.runs.device_hours import Devices
from pipeline.runs.stage_needs import Cluster


def of_run(
    path: Path, config: Config, cluster: Cluster, head_share: float | None = None, devices: Devices | None = None
) -> Estimate:
    """path: of the config, for the reader. Checked as a dry run checks it, without the checkpoints that its stages
    would load. Raises UserError."""
    preflight.before_data(config, [cluster.ranks])
    needs = stage_needs.of_run(config, cluster, head_share)
    stages = [_stage(content, devices) for content in needs.stages]
    trained = [stage.training for stage in stages if stage.sample]
    known = [training for training in trained if training]
    whole = len(known) == len(trained)
    hours = [training.device_hours.hours for training in known if training.device_hours]
    run = RunEstimate(
        name=config.name,
        ranks=cluster.ranks,
        data=dict(needs.there.lines),
        stages=stages,
        model=sum(training.model for training in known) if whole else None,
        hardware=sum(training.hardware for training in known) if whole else None,
        evaluation=sum(training.evaluation or 0 for training in known) if whole else None,
        device_hours=sum(hours) if whole and devices else None,
        disk=needs.disk,
    )
    return Estimate(config=str(path), run=run)


def _stage(content: dict[str, Any], devices: Devices | None) -> StageEstimate:
    """content: of a dry run."""
    shared = {key: content[key] for key in ("name", "kind", "model", "parameters", "disk")}
    if content["kind"] == "expand":
        return StageEstimate(**shared)
    return StageEstimate(
        **shared,
        batch=content["batch"]["samples"],
        activation_checkpointing=content["activation_checkpointing"],
        sample=Sample(**content["sample"]),
        training=_training(content, devices),
        memory=Memory(**{"new_entries": None, "zero_stage": content["zero_stage"], **content["memory"]}),
    )


def _training(content: dict[str, Any], devices: Devices | None) -> Training | None:
    flops = content["flops"]
    if flops is None:
        return None
    formats = content["precision"], content["matmul_precision"]
    return Training(
        samples=content["schedule"]["steps"] * content["batch"]["samples"],
        at_most=content["stop"] is not None,
        steps=content["schedule"]["steps"],
        model=flops["model"],
        hardware=flops["train"],
        evaluation=flops["evaluation"],
        device_hours=devices.hours(flops["model"], *formats) if devices else None,
    )
