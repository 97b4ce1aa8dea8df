"""Does DeepSpeed train as plain PyTorch does here? Random weights, a few steps, every ZeRO stage."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from transformers import PretrainedConfig

from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.config.schema import TrainStage
from pipeline.data import Batch
from pipeline.doctor.finding import Finding, graded
from pipeline.models.optimizer_groups import optimizer_groups
from pipeline.optim.optimizers import AdamW
from pipeline.training.engine import Engine, free
from pipeline.training.process_group import World
from pipeline.training.subject import of_model

VOCABULARY, BLOCK, SCORED = 97, 16, 4
FACTS = {"kind": "text", "vocab_size": VOCABULARY, "block": BLOCK, "scored": SCORED}
SIZES = ModelSizes(family="bert-pre-ln", layers=2, hidden=32, heads=2)
OPTIMIZER = AdamW(clip=0.5, weight_decay=0.1)
STEPS, ROUNDS, RATE = 5, 2, 5e-3
"""Steps on the same batch, micro-batches of each, and a rate at which the loss falls from 4.6 to 3.7: a micro-batch
that gets lost makes a difference of 0.15 then."""
TOLERANCE = {"fp32": 1e-5, "bf16": 3e-2}
"""fp32: sums in another order, of which each step leaves some units in the last place (5e-7). bf16: weights and
activations of 8 bits, a relative 4e-3 at most, of which the mean of a loss keeps a part (2e-3 were measured)."""


def stage(precision: str, zero_stage: int, batch: int) -> TrainStage:
    """Clipping that bites, decay, accumulation."""
    return TrainStage.model_validate(
        {
            "kind": "train",
            "name": "doctor",
            "model": "doctor",
            "batch": batch,
            "micro_batch": 1,
            "precision": precision,
            "gradient_sums": "bf16" if (precision, zero_stage) == ("bf16", 0) else None,  # ZeRO-0 has no others
            "zero_stage": zero_stage,
            "optimizer": OPTIMIZER,
            "schedule": {"peak": RATE, "horizon": f"{STEPS} steps"},
        }
    )


def parity(world: World, precisions: set[str]) -> Iterator[Finding]:
    """A verdict for every stage and precision; all ranks call this at once."""
    torch.set_float32_matmul_precision("highest")  # TF32 would be the larger difference
    config = models.trained(SIZES, FACTS)
    expected = _plain(config, world)
    for precision in sorted(precisions & TOLERANCE.keys(), reverse=True):
        for zero_stage in range(4):
            found = _engine(config, world, precision, zero_stage)
            yield _verdict(f"ZeRO-{zero_stage} {precision}", precision, expected, found)


def _verdict(what: str, precision: str, expected: list[float], found: list[float]) -> Finding:
    difference = max(abs(a - b) for a, b in zip(expected, found, strict=True))
    wrong = not difference <= TOLERANCE[precision] or len(set(found)) < STEPS  # nan is wrong
    text = (
        f"{what}: losses differ from plain PyTorch's by {difference:.1e} at most ({TOLERANCE[precision]:.0e} allowed)"
    )
    return graded("parity", text, "do not train with it here: reinstall torch and deepspeed, report it", bad=wrong)


def _micro_batches(world: World) -> int:
    return ROUNDS * world.size


def _batch(size: int) -> tuple[dict[str, Tensor], Tensor]:
    """The whole batch of every step."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (size, BLOCK), generator=generator)
    positions = torch.rand(size, BLOCK, generator=generator).argsort(1)[:, :SCORED].sort(1).values
    labels = torch.randint(VOCABULARY, (size, SCORED), generator=generator)
    return {"input_ids": ids, "masked_positions": positions}, labels


def _plain(config: PretrainedConfig, world: World) -> list[float]:
    """torch's own AdamW and clipping, whole batches, one process."""
    net = models.build(config, seed=1).train().to(world.device)
    spec = OPTIMIZER
    named = dict(net.named_parameters())
    sorted_in = optimizer_groups(models.architecture_of(config), named, spec)
    groups = [{"params": [named[name] for name in names], **spec.hyper(rule)} for rule, names in sorted_in.items()]
    optimizer = spec.build(groups, lr=RATE)
    inputs, labels = _batch(_micro_batches(world))
    whole = {name: value.to(world.device) for name, value in inputs.items()}, labels.to(world.device)
    return train_plainly(net, optimizer, [whole] * STEPS, spec.clip)


def train_plainly(
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[dict[str, Tensor], Tensor]],
    clip: float,
) -> list[float]:
    """The loss of each step, without DeepSpeed. batches: inputs by name and labels (of the first positions, where each
    sample has several), whole ones."""
    losses = []
    for inputs, labels in batches:
        logits = net(**inputs).logits if labels.dim() == 1 else net(**inputs).logits[:, : labels.shape[1]]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _engine(config: PretrainedConfig, world: World, precision: str, zero_stage: int) -> list[float]:
    """The same through DeepSpeed, every rank with its part of each batch."""
    size = _micro_batches(world)
    engine = Engine(of_model(models.build(config, seed=1)), stage(precision, zero_stage, size), world, seed=0)
    inputs, labels = _batch(size)
    mine = [slice(place, place + 1) for place in range(world.rank, size, world.size)]
    parts = [Batch({name: value[at] for name, value in inputs.items()}, labels[at], valid=1) for at in mine]
    losses = [engine.step(parts, step, RATE)[0] for step in range(STEPS)]
    engine.close()
    del engine
    free()
    return losses
