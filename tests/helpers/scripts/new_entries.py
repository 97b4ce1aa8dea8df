"""An engine that goes on from a checkpoint with new entries: what every worker of these tests runs."""

from pathlib import Path

import torch
import torch.distributed as dist

from pipeline import models
from pipeline.checkpoints import read
from pipeline.optim.rewarm import LEVEL, Ramp
from pipeline.training.engine import Engine
from pipeline.training.process_group import join
from pipeline.training.subject import of_model
from tests.helpers.parity_task import BATCH, batch, stage


def train(job: dict) -> list[float]:
    """The losses of the steps `first` to `last`, behind which it is saved. job: place, what is loaded; stage, its
    fields; ramp, its steps and its height; folder, of the save."""
    world, place = join(), Path(job["place"])
    torch.set_num_threads(1)
    fields = stage(**{"micro_batch": BATCH // world.size // 2, **job["stage"]})
    _, config = read(place)
    trained = of_model(models.build(config, seed=9), optimizer=fields.optimizer)
    engine = Engine(trained, fields, world, seed=0, start=place)
    engine.load(place, Ramp(*job["ramp"]) if job.get("ramp") else LEVEL)
    micro, losses = engine.micro_batch, []
    for step in range(job["first"], job["last"]):
        parts = [batch(config.model_type, step, each * micro, micro) for each in engine.places]
        losses.append(engine.step(parts, step, rate=job["rate"])[0])
    engine.save(Path(job["folder"]), job["last"], {"kind": "train", "provenance": {}})
    engine.saving.finish()
    engine.close()
    dist.barrier()
    return losses
