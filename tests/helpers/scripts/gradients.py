"""The gradients with which an engine of ours steps: what every worker of the tests of gradient sums runs."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from pipeline import models
from pipeline.training.engine import Engine
from pipeline.training.process_group import World, join
from pipeline.training.subject import of_model
from tests.helpers.parity_task import batch, model_config, stage

FAMILY, SEED = "bert-pre-ln", 5
POISONED, STEPS = 1, 3


def engine_of(job: dict, world: World) -> Engine:
    torch.set_num_threads(1)
    return Engine(of_model(models.build(model_config(FAMILY), seed=SEED)), stage(**job["stage"]), world, seed=0)


def distance(job: dict) -> dict:
    """How far the gradients of a step lie from those of one plain process, relative to their norm, and both norms. job:
    stage (its fields), samples (of a step)."""
    world = join()
    engine, count = engine_of(job, world), job["samples"]
    seen: dict[int, Tensor] = {}

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        masters = [master for group in optimizer.param_groups for master in group["params"]]
        seen.update({id(m): m.grad.detach().double().flatten() for m in masters if m.grad is not None})

    inner = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer)
    inner.register_step_pre_hook(note)
    _, norm, _ = engine.step(parts(engine, count), 0, rate=1e-3)
    wanted = plain(job["stage"], count, world.size)
    shares = mine([[wanted[name] for name in group] for group in engine.names], engine, world)
    sums = torch.zeros(2, dtype=torch.float64)
    for found, share in zip(seen.values(), shares, strict=True):
        sums += torch.stack([(found - share).square().sum(), share.square().sum()])
    if engine.stage.zero_stage:
        dist.all_reduce(sums)
    engine.close()
    dist.barrier()
    return {"distance": math.sqrt(sums[0] / sums[1]), "norm": norm, "wanted": math.sqrt(sums[1])}


def bound(job: dict) -> float:
    """The bound of the norm in an engine that has loaded what one with another bound has saved. job: stage (its
    fields), samples, folder, and other (fields of the second)."""
    world = join()
    first = engine_of(job, world)
    first.step(parts(first, job["samples"]), 0, rate=1e-3)
    saved = first.save(Path(job["folder"]), 1, {"kind": "train", "provenance": {}})
    first.saving.finish()
    first.close()
    second = engine_of({**job, "stage": job["stage"] | job["other"]}, world)
    second.load(saved)
    found = float(second.deepspeed.optimizer.clip_grad)
    second.close()
    dist.barrier()
    return found


def products(job: dict) -> list[str]:
    """What torch makes float32 products of while the engine is there, and behind it. job: stage (its fields)."""
    engine = engine_of(job, join())
    while_there = torch.get_float32_matmul_precision()
    engine.close()
    dist.barrier()
    return [while_there, torch.get_float32_matmul_precision()]


def parts(engine: Engine, count: int) -> list:
    """This rank's micro-batches, of one sample each."""
    return [batch(FAMILY, place, 0, 1) for place in engine.places][: count // engine.world.size]


def plain(fields: dict, count: int, ranks: int) -> dict[str, Tensor]:
    """The means of the gradients that torch computes for every sample in the stage's precision, summed in float64. As
    DeepSpeed does, a rank's loss is divided by its micro-batches, the sum of the ranks by the ranks."""
    bf16, autocast = (fields["precision"] == name for name in ("bf16", "bf16-autocast"))
    net = models.build(model_config(FAMILY), seed=SEED).train().to(torch.bfloat16 if bf16 else torch.float32)
    sums = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in net.named_parameters()}
    for place in range(count):
        sample = batch(FAMILY, place, 0, 1)
        net.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = net(**sample.inputs).logits.float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), sample.labels.flatten())
        (loss / (count // ranks)).backward()
        for name, parameter in net.named_parameters():
            sums[name] += parameter.grad.double() / ranks
    return sums


def mine(groups: list[list[Tensor]], engine: Engine, world: World) -> Iterator[Tensor]:
    """What the masters of this rank stand for: every parameter of stage 0, of the others its share of each group."""
    for group in groups:
        flat = [each.flatten() for each in group]
        if engine.stage.zero_stage == 0:
            yield from flat
        elif engine.stage.zero_stage == 3:
            yield torch.cat([share(each, world, -(-each.numel() // world.size)) for each in flat])
        else:
            whole = torch.cat(flat)
            yield share(whole, world, 2 * -(-whole.numel() // (2 * world.size)))


def share(flat: Tensor, world: World, length: int) -> Tensor:
    padded = torch.nn.functional.pad(flat, (0, length * world.size - flat.numel()))
    return padded[world.rank * length : (world.rank + 1) * length]


def poisoned(job: dict) -> dict:
    """Losses and norms of three steps, in the second of which one entry of a gradient of the last rank is infinite, and
    whether the weights are finite behind them. job: stage (its fields), samples, value (of the entry; 0: all gradients
    of all ranks are), warns (whether the update is left out as where the stage warns)."""
    world = join()
    engine, value = engine_of(job, world), float(job["value"])
    parameters = dict(engine.deepspeed.module.named_parameters())
    step, told = 0, []

    def spoil(gradient: Tensor) -> Tensor:
        spoilt = gradient.clone()
        spoilt.view(-1)[0] = value
        return spoilt if step == POISONED and world.rank == world.size - 1 else gradient

    def silence(gradient: Tensor) -> Tensor:
        return gradient * 0 if step == POISONED else gradient

    for parameter in parameters.values() if value == 0 else ():
        parameter.register_hook(silence)
    if value != 0:
        parameters["bert.encoder.layer.0.attention.self.query.weight"].register_hook(spoil)
    refuses = (lambda loss, norm: not math.isfinite(norm)) if job["warns"] else None
    for step in range(STEPS):
        loss, norm, _ = engine.step(parts(engine, job["samples"]), step, rate=1e-3, refuses=refuses)
        told.append((loss, norm))
    held = [getattr(parameter, "ds_tensor", parameter) for parameter in engine.deepspeed.module.parameters()]
    finite = torch.tensor(all(bool(tensor.isfinite().all()) for tensor in held), dtype=torch.int)
    dist.all_reduce(finite, op=dist.ReduceOp.MIN)
    engine.close()
    return {"told": [[str(each) for each in pair] for pair in told], "finite": bool(finite)}
