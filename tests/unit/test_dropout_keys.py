"""Dropout belongs to a micro-batch's place in the whole batch: whichever rank takes it, and in whichever turn, the
generator is seeded with the same key."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from pipeline.data import Batch
from pipeline.training.engine import Engine
from pipeline.training.process_group import World
from pipeline.training.stopwatch import Stopwatch
from tests.helpers.parity_task import stage

COUNT = 6
"""Micro-batches of a step."""


class Engines:
    """DeepSpeed's part, which only notes with what the generator was seeded as each micro-batch came by."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.optimizer, self.module = SimpleNamespace(param_groups=[]), None

    def __call__(self, **_: torch.Tensor) -> SimpleNamespace:
        self.seeds.append(torch.initial_seed())
        return SimpleNamespace(logits=torch.zeros(1, 2))

    def train(self) -> None: ...

    def step(self) -> None: ...

    def backward(self, loss: torch.Tensor) -> None: ...

    def get_global_grad_norm(self) -> None: ...


def seeds(rank: int, ranks: int, step: int = 3, seed: int = 1) -> dict[int, int]:
    """By the place of each micro-batch that a rank takes."""
    engine = Engine.__new__(Engine)
    engine.factors = []
    engine.stage, engine.seed, engine.deepspeed = stage(micro_batch=1), seed, Engines()
    engine.world, engine.watch = World(rank, ranks, torch.device("cpu")), Stopwatch()
    engine.gate = SimpleNamespace(ask=lambda refuses: None, norm=torch.zeros(()), told=float, settle=lambda: None)
    engine.loss_scale = SimpleNamespace(of_a_step=nullcontext)
    engine.saving, engine._passes = SimpleNamespace(reserve=lambda: None), 0
    engine.deepspeed_config = {"gradient_accumulation_steps": COUNT // ranks}
    batches = [Batch({}, torch.zeros(1, dtype=torch.long), 1) for _ in range(COUNT // ranks)]
    engine.step(batches, step, rate=0.1)
    return dict(zip(engine.places, engine.deepspeed.seeds, strict=True))


@pytest.mark.parametrize("ranks", [1, 2, 3, 6])
def test_each_place_has_its_own_masks_on_any_number_of_ranks(monkeypatch, ranks):
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    alone = seeds(0, 1)
    assert sorted(alone) == list(range(COUNT)) and len(set(alone.values())) == COUNT
    together = {place: seed for rank in range(ranks) for place, seed in seeds(rank, ranks).items()}
    assert together == alone
    assert not set(alone.values()) & set(seeds(0, 1, step=4).values()) & set(seeds(0, 1, seed=2).values())
