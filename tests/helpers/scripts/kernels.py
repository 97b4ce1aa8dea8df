"""Engines whose optimizers compute by this or that kernel of torch: what every worker of the tests of kernels runs."""

from pathlib import Path

import torch

from pipeline import models
from pipeline.training.engine import Engine
from pipeline.training.process_group import World, join
from pipeline.training.subject import of_model
from tests.helpers.parity_task import BATCH, batch, model_config, stage

FAMILY = "vit"


def resumed(job: dict) -> dict:
    """Two steps by the kernel `job["begun"]`, saved to `job["folder"]`; two more by another engine, which was built for
    the kernel `job["kernel"]` and has loaded that; all four in one engine by the first kernel besides.

    Returns the losses of both ways, and what the groups of the loaded engine say of the kernel."""
    world, fields = join(), {"micro_batch": BATCH // 2, **job["stage"]}
    torch.set_num_threads(1)
    first = _engine(fields, world, job["begun"])
    losses = [_step(first, world, number) for number in (0, 1)]
    first.save(Path(job["folder"]), 2, {"kind": "train", "provenance": {}})
    first.saving.finish()
    uninterrupted = [*losses, *(_step(first, world, number) for number in (2, 3))]
    first.close()
    second = _engine(fields, world, job["kernel"])
    second.load(Path(job["folder"]) / "step-0000002")
    fused = [group["fused"] for group in second.deepspeed.optimizer.param_groups]
    losses += [_step(second, world, number) for number in (2, 3)]
    second.close()
    return {"resumed": losses, "uninterrupted": uninterrupted, "fused": fused}


def _engine(fields: dict, world: World, kernel: str) -> Engine:
    return Engine(of_model(models.build(model_config(FAMILY), seed=5)), stage(**fields), world, seed=0, kernel=kernel)


def _step(engine: Engine, world: World, number: int) -> float:
    micro = BATCH // world.size
    return engine.step([batch(FAMILY, number, world.rank * micro, micro)], number, rate=1e-2)[0]
