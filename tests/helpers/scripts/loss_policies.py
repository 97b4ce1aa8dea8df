"""Train a tiny model through our engine, with a step in between whose update is refused: what every worker runs."""

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline import models
from pipeline.data import Batch
from pipeline.training.engine import Engine
from pipeline.training.process_group import World, join
from pipeline.training.subject import of_model
from tests.helpers.parity_task import BATCH, ROUNDS, batch, model_config, stage

FAMILY, RATE, REFUSED = "vit", 1e-3, 2


def skipping(job: dict) -> dict:
    """Whether an engine that refused a step holds to the bit what one holds that never saw it.

    job: stage (fields of a stage), poison (whether a sample of the last rank is NaN; or "bias": the gradient of one
    parameter alone is infinite). Also returns the loss and norm of that step, and how many tensors were compared."""
    world = join()
    torch.set_num_threads(1)
    seen, told = _trained(job, world, [0, 1, REFUSED, 3])
    plain, _ = _trained(job, world, [0, 1, 3])
    equal = [torch.equal(one, other) for one, other in zip(seen, plain, strict=True)]
    dist.barrier()
    return {**told, "equal": sum(equal), "tensors": len(equal)}


def _trained(job: dict, world: World, steps: list[int]) -> tuple[list[Tensor], dict]:
    """What the engine holds behind these steps. What was refused must change nothing at once, and the others must."""
    fields, told = stage(**job["stage"]), {}
    trained = of_model(models.build(model_config(FAMILY), seed=5), optimizer=fields.optimizer)
    engine = Engine(trained, fields, world, seed=0)
    for step in steps:
        before = [tensor.clone() for tensor in held(engine)]
        refused = step == REFUSED
        parts = _parts(step, world)
        bias, hooks = engine.deepspeed.module.classifier.bias, []
        if refused and job["poison"] == "bias":
            hooks.append(bias.register_hook(lambda gradient: gradient * math.inf))
        elif refused and job["poison"] and world.rank == world.size - 1:  # the ranks must decide alike
            parts[-1].inputs["pixel_values"][0, 0, 0, 0] = math.nan
        loss, norm, _ = engine.step(parts, step, RATE, refuses=lambda loss, norm, refused=refused: refused)
        for hook in hooks:
            hook.remove()
        after = list(held(engine))
        same = len(before) == len(after) and all(map(torch.equal, before, after))
        assert same == refused, f"step {step}"
        told = {"loss": loss, "norm": norm} if refused else told
    state = [tensor.clone() for tensor in held(engine)]
    engine.close()
    return state, told


def _parts(step: int, world: World) -> list[Batch]:
    micro = BATCH // world.size // ROUNDS
    return [batch(FAMILY, step, (part * world.size + world.rank) * micro, micro) for part in range(ROUNDS)]


def held(engine: Engine) -> Iterator[Tensor]:
    """Everything that this rank keeps: weights or partitions of them, master weights, moments, step counts."""
    for parameter in engine.deepspeed.module.parameters():
        yield getattr(parameter, "ds_tensor", parameter)
    inner = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)
    for master, state in inner.state.items():
        yield master
        yield from (torch.as_tensor(value) for value in state.values())
