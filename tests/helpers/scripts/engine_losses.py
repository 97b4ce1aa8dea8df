"""Train a tiny model through our engine: what every worker of the parity tests runs."""

import torch
import torch.distributed as dist

from pipeline import models
from pipeline.training.engine import Engine, join
from tests.helpers.parity_task import BATCH, ROUNDS, batch, model_config, stage


def train(job: dict) -> list[float]:
    """The losses. job: family, stage (fields of a stage: zero_stage, precision, …), steps."""
    world = join()
    torch.set_num_threads(1)
    config = model_config(job["family"])
    engine = Engine(models.build(config, seed=5), stage(**job["stage"]), world, seed=0)
    losses = []
    for step in range(job["steps"]):
        micro = BATCH // world.size // ROUNDS
        parts = [batch(job["family"], step, (part * world.size + world.rank) * micro, micro) for part in range(ROUNDS)]
        losses.append(engine.step(parts, step, rate=1e-3)[0])
    dist.barrier()
    return losses
