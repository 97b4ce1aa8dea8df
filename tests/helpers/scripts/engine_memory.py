"""What an engine of ours holds in tensors: what every worker of the memory tests runs."""

import gc
import time

import torch
import torch.distributed as dist

from pipeline import models
from pipeline.config.schema import TrainStage
from pipeline.training.engine import Engine
from pipeline.training.losses import loss_per_sample
from pipeline.training.process_group import World, join
from pipeline.training.subject import of_model
from tests.helpers.parity_task import BATCH, batch, model_config, stage

LOOKS, BETWEEN = 4, 0.05
"""How often is looked, and seconds before each."""
BUFFER = 10**8
"""Bytes: DeepSpeed's buckets have more, whatever the model's size, the models of the tests much less."""


def held(job: dict) -> int:
    """Bytes of all tensors of rank 0 that were not there before the engine, at their most: behind a backward pass of
    the second step, when the optimizer has its state, and where it steps. job: family, sizes, stage (its fields)."""
    world = join()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # what is there already is not looked at any more
    engine = _engine(job, world)
    inner, at_steps = getattr(engine.deepspeed.optimizer, "optimizer", engine.deepspeed.optimizer), []
    hook = inner.register_step_pre_hook(lambda *_: at_steps.append(_new()))
    most = 0
    for step in range(2):
        engine.deepspeed.train()
        for _ in range(engine.accumulation):
            _pass_back(engine, job, step)
            most = max(most, _new()) if step else 0
            engine.deepspeed.step()
    hook.remove()
    engine.close()
    del engine, inner
    gc.unfreeze()
    dist.barrier()
    return max(most, *at_steps)


def buckets(job: dict) -> int:
    """Bytes of the buffers through which rank 0 reduces gradients, in the middle of a backward pass; stages 1 and 2 let
    go of them at its end. job: as above."""
    engine, seen = _engine(job, join()), []

    def look(gradient: torch.Tensor) -> torch.Tensor:
        staged = [bucket.buffer for bucket in engine.deepspeed.optimizer.ipg_buckets.values()]
        tensors = [tensor for each in staged for tensor in (each if isinstance(each, list) else [each])]
        seen.append(sum(tensor.nbytes for tensor in tensors))
        return gradient

    first = next(engine.deepspeed.module.parameters())
    hook = first.register_hook(look)
    engine.deepspeed.train()
    _pass_back(engine, job, step=0)
    hook.remove()
    engine.close()
    return seen[-1]


def _engine(job: dict, world: World) -> Engine:
    fields = stage(**job["stage"]).model_dump(mode="json") | {"optimizer": job["optimizer"]}
    of_stage = TrainStage.model_validate(fields)
    net = models.build(model_config(job["family"], **job["sizes"]), seed=5)
    return Engine(of_model(net, of_stage.activation_checkpointing, of_stage.optimizer), of_stage, world, seed=0)


def _pass_back(engine: Engine, job: dict, step: int) -> None:
    part = batch(job["family"], step, 0, BATCH // engine.world.size // engine.accumulation)
    engine.deepspeed.backward(loss_per_sample(*engine._logits(part)).mean())


def _new() -> int:
    """The least of some looks: gloo's thread lets go of what it has reduced a moment later."""
    return min(_look() for _ in range(LOOKS))


def _look() -> int:
    time.sleep(BETWEEN)
    gc.collect()
    sizes = _storages().values()
    return sum(size for size in sizes if isinstance(size, int) and size < BUFFER)  # a symbol is torch's compiler's


def _storages() -> dict[int, int]:
    """Bytes of every storage that a tensor of this process has, gradients included."""
    found: dict[int, int] = {}
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor):
            for tensor in (each, each.grad if each.is_leaf else None):
                if tensor is not None and not tensor.is_meta:
                    storage = tensor.untyped_storage()
                    found[storage._cdata] = storage.nbytes()
    return found
