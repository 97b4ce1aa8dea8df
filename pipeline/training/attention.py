"""Which attention a stage computes with: torch's fused kernels (`sdpa`) or plain matrix products (`eager`).

Both compute the same function. On CPUs it depends on length, precision and processor which is faster (with AMX in bf16
the backward pass of the fused kernel is nearly half of a step), so it is measured where a stage begins.
"""

import copy
import time
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from pipeline import models
from pipeline.accounting.memory import kept_layers
from pipeline.config.schema import TrainStage
from pipeline.data import Batch, train_batches
from pipeline.errors import UserError
from pipeline.models.config_keys import LAYER_TYPES
from pipeline.training import free_memory, micro_batches
from pipeline.training.losses import model_inputs
from pipeline.training.precisions import PRODUCTS
from pipeline.training.process_group import World
from pipeline.training.stage import TrainingPlan

Attention = Literal["sdpa", "eager"]
KINDS: tuple[Attention, ...] = ("sdpa", "eager")
GAIN = 1.1
"""How many times as fast as `sdpa` plain attention must be to be chosen: a smaller difference may be noise, and another
run of the same config is to choose the same."""
ROUNDS, SECONDS = 7, 2.0
"""Measured passes of each kind: so many, or as many as fit into so many seconds, and no fewer than `FEWEST`."""
FEWEST = 3
BYTES_OF_A_SCORE = 8
"""What plain attention keeps of each pair of tokens until the backward pass: the softmax in float32, and what is
multiplied, in the precision of the weights."""
SHARE_OF_MEMORY = 0.25
"""Of a rank's part of the free memory: plain attention that would keep more is not considered."""


@dataclass(frozen=True)
class Choice:
    """reason: in words."""

    attention: Attention
    reason: str


def require_possible(stage: TrainStage, model: PretrainedConfig) -> None:
    """Raises UserError where the fused kernels are asked for, and the model is computed by plain attention alone."""
    if stage.attention == "sdpa" and models.attention_of(model) != "sdpa":
        raise UserError(
            f"stages.{stage.name}: attention sdpa: its model ({model.model_type}) is computed by plain attention "
            "alone; use auto or eager"
        )


def choose(plan: TrainingPlan, world: World) -> Choice:
    """What the stage of `plan` is to compute with on these devices; to be called by all ranks at once, which measure at
    the same time, since they share caches and memory."""
    if world.device.type != "cpu":
        return Choice("sdpa", f"the fused kernels of {world.device.type}")
    size = micro_batches.size_of(plan.stage, world.size)
    scarce = torch.tensor(float(kept_scores(plan, size) > _share_of_memory()))
    dist.all_reduce(scarce)
    if scarce:
        return Choice("sdpa", "plain attention would keep more scores than the free memory holds")
    seconds = torch.tensor(measured(plan, world), dtype=torch.float64)
    dist.all_reduce(seconds)
    sdpa, eager = (seconds / world.size).tolist()
    times = f"a layer takes {1e3 * eager:.3g} ms with plain attention, {1e3 * sdpa:.3g} ms with torch's sdpa"
    return Choice(faster(sdpa, eager), times)


def faster(sdpa: float, eager: float) -> Attention:
    """The choice by the seconds of each."""
    return "eager" if sdpa > GAIN * eager else "sdpa"


def measured(plan: TrainingPlan, world: World) -> tuple[float, float]:
    """Median seconds of one layer's forward and backward pass of a micro-batch of the stage in its precision, with
    `sdpa` and with plain attention, in turns."""
    batch = _batch(plan, world)
    with torch.random.fork_rng(devices=[]):
        layers = [_Layer.of(one_layer(plan.model), kind, plan.stage.precision, batch) for kind in KINDS]
        for layer in layers:
            layer.seconds()
        taken: list[tuple[float, ...]] = []
        begun = time.perf_counter()
        while len(taken) < FEWEST or (len(taken) < ROUNDS and time.perf_counter() - begun < SECONDS):
            taken.append(tuple(layer.seconds() for layer in layers))
    sdpa, eager = (median(times) for times in zip(*taken, strict=True))
    return sdpa, eager


@dataclass(frozen=True)
class _Layer:
    """A layer with the arguments that its model calls it with."""

    module: nn.Module
    hidden: Tensor
    others: tuple[Any, ...]
    named: dict[str, Any]

    @classmethod
    def of(cls, config: PretrainedConfig, attention: Attention, precision: str, batch: Batch) -> "_Layer":
        model = models.build(config, attention=attention).to(PRODUCTS[precision])
        layer = model.get_submodule(next(models.architecture_of(config).blocks()))
        (hidden, *others), named = _called_with(model.train(), layer, batch)
        return cls(layer, hidden.detach().requires_grad_(), tuple(others), named)

    def seconds(self) -> float:
        """Of a forward and a backward pass."""
        self.module.zero_grad()
        begun = time.perf_counter()
        result = self.module(self.hidden, *self.others, **self.named)
        (result[0] if isinstance(result, tuple) else result).sum().backward()
        return time.perf_counter() - begun


def _called_with(model: PreTrainedModel, layer: nn.Module, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with which the model calls one of its layers, masks among them."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    with torch.no_grad(), layer.register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True):
        model(**model_inputs(batch, model, torch.device("cpu")))
    return calls[0]


def one_layer(config: PretrainedConfig) -> PretrainedConfig:
    """The same model with its first layer alone."""
    config = copy.deepcopy(config)
    if getattr(config, LAYER_TYPES, None):
        setattr(config, LAYER_TYPES, getattr(config, LAYER_TYPES)[:1])
    config.num_hidden_layers = 1
    config.use_cache = False
    return config


def _batch(plan: TrainingPlan, world: World) -> Batch:
    """This rank's first micro-batch."""
    data = plan.config.data.model_copy(update={"workers": 0})
    size = micro_batches.size_of(plan.stage, world.size)
    ranks: dict[str, Any] = {"micro_batch": size, "rank": world.rank, "world": world.size}
    return next(train_batches(plan.data, data, plan.config.seed, batch=plan.stage.batch, first_step=0, **ranks))


def kept_scores(plan: TrainingPlan, size: int) -> int:
    """Bytes that plain attention keeps on a rank for the backward pass of a micro-batch of so many samples."""
    architecture = models.architecture_of(plan.model)
    positions = models.of_config(plan.model).positions(plan.model, plan.data.facts)
    pairs = sum(
        kept_layers(stack.layers, int(plan.stage.activation_checkpointing))
        * architecture.spaces[each.query].count
        * positions[each.query_positions]
        * positions[each.key_positions]
        for stack in architecture.stacks
        for each in stack.attentions
    )
    return size * pairs * BYTES_OF_A_SCORE


def _share_of_memory() -> float:
    return SHARE_OF_MEMORY * free_memory.of_rank()
