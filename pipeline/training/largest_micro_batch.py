"""`micro_batch: auto`: the largest micro-batch that fits into the memory of every rank, found before the first step.

On a GPU it is tried: forward and backward passes of the stage's model on its own data, beside as much memory as
DeepSpeed will hold for weights, gradients, optimizer and buckets (accounting/memory.py). Each rank tries alone, so that
one that runs out of memory leaves no other waiting in a collective. On a CPU, where running out of memory is the end of
a process, and under ZeRO-3, whose models may be larger than a GPU, formulas say what a step takes. The smallest that
any rank has found is taken by all; a stage that goes on keeps it.
"""

import logging
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from pipeline import models
from pipeline.accounting.memory import Buffers, ModelStates, activations, model_states, parameter_groups
from pipeline.accounting.save_copy import save_copy
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.config.schema import TrainStage
from pipeline.data import Batch, train_batches
from pipeline.errors import UserError
from pipeline.models.optimizer_groups import state_numbers
from pipeline.training import free_memory
from pipeline.training.attention import kept_scores
from pipeline.training.engine import free
from pipeline.training.losses import model_inputs
from pipeline.training.micro_batches import candidates
from pipeline.training.precisions import WEIGHTS
from pipeline.training.process_group import World
from pipeline.training.stage import TrainingPlan

logger = logging.getLogger(__name__)

SHARE = 0.7
"""Of the free memory, for a step whose activations are estimated; plain attention, if it is chosen later, may keep
a quarter besides."""


def settled(plan: TrainingPlan, world: World) -> TrainingPlan:
    """The plan with a micro-batch, found where it is to be. To be called by all ranks at once. Raises UserError where
    not even the smallest fits."""
    stage = plan.stage
    if stage.micro_batch != "auto":
        return plan
    sizes = candidates(stage, world.size)
    tried = world.device.type == "cuda" and stage.zero_stage < 3
    own = _tried(plan, world, sizes) if tried else _estimated(plan, world, sizes)
    least = torch.tensor(own, device=world.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    size = int(least)
    if not size:
        raise UserError(
            f"stages.{stage.name}.micro_batch: auto: not even {sizes[-1]} samples fit beside model and optimizer; take "
            "another zero_stage, activation_checkpointing, or more ranks"
        )
    if world.first:
        logger.info(f"{stage.name}: micro_batch auto: {size} of {sizes[0]} samples a rank fit at a time")
    return replace(plan, stage=stage.model_copy(update={"micro_batch": size}))


def _estimated(plan: TrainingPlan, world: World, sizes: list[int]) -> int:
    """The largest of the sizes of which a step takes no more than this rank may have; 0: none."""
    on_gpu = world.device.type == "cuda"
    most = int(SHARE * (torch.cuda.mem_get_info(world.device)[0] if on_gpu else free_memory.of_rank()))
    needs = {size: needed(plan, world.size, size, on_gpu) for size in sizes}
    logger.debug(f"{plan.stage.name}: a rank may take {amount(most)}, and needs {needs} bytes by micro-batch")
    return next((size for size, need in needs.items() if need <= most), 0)


def needed(plan: TrainingPlan, ranks: int, size: int, on_gpu: bool = False) -> int:
    """Bytes of a rank's device in training, about: states, activations of `size` samples; on a CPU the copy that is
    saved, on a GPU DeepSpeed's buckets."""
    stage, architecture = plan.stage, models.architecture_of(plan.model)
    positions = models.of_config(plan.model).positions(plan.model, plan.data.facts)
    passing = activations(
        architecture,
        positions,
        micro_batch=size,
        bf16=stage.precision != "fp32",
        every=int(stage.activation_checkpointing),
    )
    passing += kept_scores(plan, size) if stage.attention == "eager" else 0
    states = _states(plan, ranks, size)
    if on_gpu:
        return _on_the_gpu(stage, states) + passing
    copy = save_copy(stage, architecture.parameters, state_numbers(architecture, stage.optimizer), ranks)
    return states.held + passing + copy


def _on_the_gpu(stage: TrainStage, states: ModelStates) -> int:
    """Bytes of them in its memory."""
    return states.held + states.bucket - (states.optimizer if stage.deepspeed.offloads else 0)


def _states(plan: TrainingPlan, ranks: int, size: int) -> ModelStates:
    return model_states(
        parameter_groups(models.architecture_of(plan.model), plan.stage.optimizer),
        zero_stage=plan.stage.zero_stage,
        ranks=ranks,
        bf16=plan.stage.in_16_bits,
        accumulates=plan.stage.batch > size * ranks,
        fp32_sums=plan.stage.sums_in_fp32,
        buffers=Buffers.of(plan.stage, on_gpu=True),
    )


def _tried(plan: TrainingPlan, world: World, sizes: list[int]) -> int:
    """The largest of the sizes with which this rank's GPU gets through; 0: none."""
    attention = "eager" if plan.stage.attention == "eager" else "sdpa"
    weights = WEIGHTS[plan.stage.precision]
    with torch.random.fork_rng([world.device]):
        try:
            module = plan.subject.whole(plan.model, attention).to(world.device, weights)
        except torch.OutOfMemoryError:
            return 0
        held = 2 * weights.itemsize * sum(parameter.numel() for parameter in module.parameters())
        for size in sizes:
            beside = _on_the_gpu(plan.stage, _states(plan, world.size, size)) - held
            with torch.autocast("cuda", torch.bfloat16, enabled=plan.stage.precision == "bf16-autocast"):
                fits = _passes(module.train(), _batch(plan, size), world.device, beside)
            module.zero_grad(set_to_none=True)
            free()
            if fits:
                return size
    return 0


def _batch(plan: TrainingPlan, size: int) -> Batch:
    config = plan.config
    data = config.data.model_copy(update={"workers": 0})
    ranks: dict[str, Any] = {"batch": size, "micro_batch": size, "rank": 0, "world": 1, "first_step": 0}
    return next(train_batches(plan.data, data, config.seed, **ranks))


def _passes(module: nn.Module, batch: Batch, device: torch.device, beside: int) -> bool:
    """Whether two passes, the second on top of gradients, get through while `beside` bytes are taken."""
    try:
        inputs = model_inputs(batch, module, device)
        taken = torch.empty(max(0, beside), dtype=torch.uint8, device=device)
        for _ in range(2):
            logits = module(**inputs).logits.float().flatten(0, -2)
            F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long)).backward()
        del taken
    except torch.OutOfMemoryError:
        return False
    return True
