"""Saves of a tiny model in training by our engine: what every worker of the tests of saving runs."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from pipeline import models
from pipeline.errors import UserError
from pipeline.training import saving
from pipeline.training.engine import Engine
from pipeline.training.process_group import World, join
from pipeline.training.save_in_flight import SaveInFlight
from pipeline.training.subject import of_model
from tests.helpers.parity_task import BATCH, batch, model_config, stage

FAMILY = "vit"


@contextmanager
def trained(job: dict) -> Iterator[tuple[Engine, World]]:
    """An engine that has made a step. job: stage (fields of a stage)."""
    world = join()
    torch.set_num_threads(1)
    fields = {"micro_batch": BATCH // world.size, **job["stage"]}
    engine = Engine(of_model(models.build(model_config(FAMILY), seed=5)), stage(**fields), world, seed=0)
    step(engine, world)
    yield engine, world
    engine.close()


def step(engine: Engine, world: World) -> bool:
    """Make one; returns whether all ranks are to stop, as one of them has a save that failed."""
    micro = BATCH // world.size
    parts = [batch(FAMILY, 0, world.rank * micro, micro)]
    return engine.step(parts, 0, rate=1e-2, stop=engine.saving.failed)[2]


def both_ways(job: dict) -> list[float]:
    """DeepSpeed's own save to `job["own"]`, then ours to `job["ours"]` (a folder each), while the training goes on.
    Returns the bytes of the copy after each of two saves."""
    with trained(job) as (engine, world):
        ours = engine.deepspeed.checkpoint_engine
        engine.deepspeed.checkpoint_engine = ours.own
        state = {"group_names": engine.names}
        engine.deepspeed.save_checkpoint(job["own"], tag="own", client_state=state, save_latest=False)
        engine.deepspeed.checkpoint_engine = ours
        engine.save(Path(job["ours"]), 1, {"kind": "train"})
        step(engine, world)
        sizes = [engine.saving.memory.size]
        engine.save(Path(job["ours"]), 2, {"kind": "train"})
        engine.saving.finish()
        return [*sizes, engine.saving.memory.size]


def refused(job: dict) -> dict:
    """A good save, then one that fails on the last rank. job: folder, and `spoilt`: weights (NaN in them), padding
    (stage 3's), none (the disk's own matter). Returns what rank 0 is told, or None, and whether a step told all."""
    with trained(job) as (engine, world):
        folder = Path(job["folder"])
        engine.save(folder, 1, {"kind": "train"})
        engine.saving.finish()
        if world.rank == world.size - 1:
            _spoil(engine, job["spoilt"])
        told = stops = None
        try:
            engine.save(folder, 2, {"kind": "train"})
            _wait(engine)
            stops = step(engine, world)
            engine.saving.finish()
        except UserError as error:
            told = str(error)
        everywhere: list = [None] * world.size
        dist.all_gather_object(everywhere, told)
        assert set(everywhere) == {told}
        return {"told": told, "stops": stops}


def _spoil(engine: Engine, what: str) -> None:
    optimizer = engine.deepspeed.optimizer
    if what == "weights":
        optimizer.single_partition_of_fp32_groups[0].data[3] = float("nan")
    elif what == "padding":
        spans = saving.stage_3_spans(engine.deepspeed)
        outside = 0
        for flat, filled in zip(optimizer.fp32_partitioned_groups_flat, spans, strict=True):
            padding = torch.ones(flat.numel(), dtype=torch.bool)
            for start, stop in filled:
                padding[start:stop] = False
            flat.data[padding] = float("nan")
            outside += int(padding.sum())
        assert outside


def _wait(engine: Engine) -> None:
    """Until this rank's part has ended, well or not; where all write on one disk, another's may fail alone."""
    engine.saving.flight.written.exception()
    dist.barrier()


def slow(job: dict) -> list[float]:
    """Three saves of which each takes half a second to write. Returns the seconds that each paused for."""
    write = SaveInFlight._write

    def slowly(flight: SaveInFlight) -> None:
        time.sleep(0.5)
        write(flight)

    with trained(job) as (engine, _), mock.patch.object(SaveInFlight, "_write", slowly):
        for number in (1, 2, 3):
            engine.saving.make_room()  # as the loop does, which counts waiting by itself
            engine.save(Path(job["folder"]), number, {"kind": "train"})
        engine.saving.finish()
        pauses = [flight.pause for flight in engine.saving.published()] or [0.0] * 3
        assert engine.saving.slow == (os.environ["RANK"] == "0" and engine.saving.background)
        return pauses
