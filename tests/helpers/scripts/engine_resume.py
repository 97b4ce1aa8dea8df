"""An engine that is saved and goes on, beside one that is not interrupted: what every worker of these tests runs."""

from pathlib import Path

import torch
import torch.distributed as dist

from pipeline import models
from pipeline.training.engine import Engine, World, join
from pipeline.training.subject import of_model
from tests.helpers.parity_task import BATCH, batch, model_config, stage


def engine_of(job: dict, world: World, seed: int, start: Path | None = None) -> Engine:
    """job: family, stage (its fields), sizes (that are to be others)."""
    torch.set_num_threads(1)
    fields = stage(**{"micro_batch": BATCH // world.size // 2, **job["stage"]})
    model = models.build(model_config(job["family"], **job.get("sizes", {})), seed=seed)
    return Engine(of_model(model, fields.activation_checkpointing), fields, world, seed=0, start=start)


def losses(job: dict, engine: Engine, world: World, first: int, last: int) -> list[float]:
    """Of the steps `first` to `last`, the one before it the last."""
    micro = engine.micro_batch
    return [
        engine.step([batch(job["family"], step, place * micro, micro) for place in engine.places], step, rate=1e-3)[0]
        for step in range(first, last)
    ]


def resumed(job: dict) -> dict:
    """The losses of `steps` steps, `saved` of them before a save to `folder`, and those of an engine of other weights
    which loads it. job: `again`, fields of the stage that goes on, where they are others; `place`, what it loads, where
    it is something else; `steps` and `saved`."""
    world = join()
    engine = engine_of(job, world, seed=5)
    whole = losses(job, engine, world, 0, job["saved"])
    saved = engine.save(Path(job["folder"]), job["saved"], {"kind": "train", "provenance": {}})
    engine.saving.finish()
    whole += losses(job, engine, world, job["saved"], job["steps"])
    engine.close()
    dist.barrier()
    return {"whole": whole, "behind": loaded({**job, "place": str(saved)})}


def loaded(job: dict) -> list[float]:
    """The losses behind step `saved` of an engine that has loaded `place`."""
    world, place = join(), Path(job["place"])
    job = {**job, "stage": job["stage"] | job.get("again", {})}
    engine = engine_of(job, world, seed=6, start=place)
    engine.load(place)
    found = losses(job, engine, world, job["saved"], job["steps"])
    engine.close()
    return found
