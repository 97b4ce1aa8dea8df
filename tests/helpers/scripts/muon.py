"""Engines that train by Muon: what every worker of its tests runs."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from deepspeed.runtime.zero.muon import original_muon
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline import models
from pipeline.training.engine import Engine
from pipeline.training.process_group import World, join
from pipeline.training.subject import of_model
from tests.helpers.parity_task import BATCH, ROUNDS, batch, model_config, stage


def train(job: dict) -> dict:
    """Losses and recorded gradient norms. job: family, stage (fields of a stage), steps; exact: matrices are
    orthogonalised in float32, as on devices without fp16."""
    world, losses, norms = join(), [], []
    with _precision(job):
        engine = _engine(job, world)
        for number in range(job["steps"]):
            loss, norm, _ = engine.step(_parts(job, world, number), number, rate=1e-3)
            losses.append(loss)
            norms.append(norm)
        engine.close()
    return {"losses": losses, "norms": norms}


def resumed(job: dict) -> dict:
    """Two steps, a save to `job["folder"]`, two more; then these two by another engine from there. Returns the losses
    of the last two steps, each way."""
    world = join()
    first = _engine(job, world)
    for number in (0, 1):
        first.step(_parts(job, world, number), number, rate=1e-3)
    first.save(Path(job["folder"]), 2, {"kind": "train", "provenance": {}})
    first.saving.finish()
    uninterrupted = [first.step(_parts(job, world, number), number, rate=1e-3)[0] for number in (2, 3)]
    first.close()
    return {"uninterrupted": uninterrupted, "resumed": went_on({**job, "load": f"{job['folder']}/step-0000002"})}


def went_on(job: dict) -> list[float]:
    """The losses of the steps 2 and 3 from the checkpoint `job["load"]`; `job["again"]`: the folder to which all is
    saved as it was loaded, before them."""
    world, place = join(), Path(job["load"])
    engine = _engine(job, world, start=place)
    engine.load(place)
    if "again" in job:
        engine.save(Path(job["again"]), 2, {"kind": "train", "provenance": {}})
        engine.saving.finish()
    losses = [engine.step(_parts(job, world, number), number, rate=1e-3)[0] for number in (2, 3)]
    engine.close()
    return losses


def update_flops(job: dict) -> int:
    """FLOPs of the updates of one step on all ranks together, as torch counts their matrix products."""
    world, counted = join(), [0]
    engine = _engine(job, world)
    names = ("zeropower_via_gram_newtonschulz", "zeropower_via_newtonschulz5")
    with ExitStack() as patched:
        for name in names:
            counting = partial(_counting, getattr(original_muon, name), counted)
            patched.enter_context(mock.patch.object(original_muon, name, counting))
        engine.step(_parts(job, world, 0), 0, rate=1e-3)
    engine.close()
    everywhere = torch.tensor(counted)
    dist.all_reduce(everywhere)
    return int(everywhere)


def _counting(iterate: Callable[..., Tensor], counted: list[int], matrix: Tensor, steps: int) -> Tensor:
    with FlopCounterMode(display=False) as counter:
        result = iterate(matrix, steps)
    counted[0] += counter.get_total_flops()
    return result


def _precision(job: dict) -> AbstractContextManager:
    in_float32 = mock.patch.object(original_muon, "ns_compute_dtype", return_value=torch.float32)
    return in_float32 if job.get("exact") else nullcontext()


def _engine(job: dict, world: World, start: Path | None = None) -> Engine:
    torch.set_num_threads(1)
    fields = stage(**{"micro_batch": _micro_batch(job, world), **job["stage"]})
    net = models.build(model_config(job["family"]), seed=5)
    return Engine(of_model(net, fields.activation_checkpointing, fields.optimizer), fields, world, seed=0, start=start)


def _micro_batch(job: dict, world: World) -> int:
    return job["stage"].get("micro_batch", BATCH // world.size // ROUNDS)


def _parts(job: dict, world: World, number: int) -> list:
    micro = _micro_batch(job, world)
    firsts = range(world.rank * micro, BATCH, world.size * micro)
    return [batch(job["family"], number, first, micro) for first in firsts]
