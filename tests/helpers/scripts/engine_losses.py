"""Train a tiny model through our engine: what every worker of the parity tests runs."""

from pathlib import Path

import torch
import torch.distributed as dist

from pipeline import models
from pipeline.config.hang import HangChoice
from pipeline.training import timeouts
from pipeline.training.engine import Engine
from pipeline.training.process_group import join
from pipeline.training.subject import of_model
from tests.helpers.parity_task import BATCH, ROUNDS, batch, model_config, stage


def train(job: dict) -> list[float]:
    """The losses. job: family, sizes (of its model, where they are others), stage (fields of a stage: zero_stage,
    precision, …), steps, apart (as of `batch`), rounds (micro-batches of a rank)."""
    world = join()
    torch.set_num_threads(1)
    config = model_config(job["family"], **job.get("sizes", {}))
    fields = stage(**job["stage"])
    trained = of_model(models.build(config, seed=5), fields.activation_checkpointing, fields.optimizer)
    engine = Engine(trained, fields, world, seed=0)
    losses, rounds = [], job.get("rounds", ROUNDS)
    for step in range(job["steps"]):
        micro = BATCH // world.size // rounds
        firsts = [(part * world.size + world.rank) * micro for part in range(rounds)]
        parts = [batch(job["family"], step, first, micro, job.get("apart", False)) for first in firsts]
        losses.append(engine.step(parts, step, rate=1e-3)[0])
    dist.barrier()
    return losses


def timeouts_of_groups(job: dict) -> list[float]:
    """Seconds, of every process group, when an engine has trained and saved. job: stage, folder, collective: the
    time-out to set."""
    world = join(HangChoice(collective=job["collective"]))
    engine = Engine(of_model(models.build(model_config("vit"), seed=5)), stage(**job["stage"]), world, seed=0)
    engine.step([batch("vit", 0, world.rank, 1)], 0, rate=1e-3)
    engine.save(Path(job["folder"]), 1, {"kind": "train", "provenance": {}})
    dist.barrier()
    return [timeouts.of(group).total_seconds() for group in timeouts.groups()]
