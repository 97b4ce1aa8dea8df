"""What the tests of this folder share: random weights, growing in memory, measuring."""

import copy

import torch
from transformers import PretrainedConfig

from pipeline import models
from pipeline.growth.engine import Growth, plan
from pipeline.growth.method import Options
from pipeline.growth.plan import Plan
from pipeline.growth.probe import probe
from pipeline.growth.verify import Pair

Weights = dict[str, torch.Tensor]


def randomised(config: PretrainedConfig, seed: int = 7, scale: float = 0.4) -> Weights:
    """Every parameter random, gains and biases too: no rule may rest on ones and zeros."""
    generator, table = torch.Generator().manual_seed(seed), models.table(config)
    tensors = {}
    for row in table.rows():
        tensors[row.name] = torch.randn(table.shape(row), generator=generator, dtype=torch.float64) * scale
        if row.axes[0].role in ("gain", "scales"):
            tensors[row.name] += 1
    return tensors


def planned(source: PretrainedConfig, target: PretrainedConfig, **options) -> tuple[Plan, PretrainedConfig]:
    """The plan, and the target's config with what the plan changes."""
    tables = models.table(source), models.table(target)
    made = plan(*tables, getattr(source, tables[0].eps), Options(**options))
    target = copy.deepcopy(target)
    target.update(made.config_change)
    return made, target


def grown(weights: Weights, source: PretrainedConfig, target: PretrainedConfig, **options) -> tuple[Weights, PretrainedConfig, Plan]:
    """Grown in float64, without a final cast."""
    made, target = planned(source, target, **options)
    growth = Growth(made, models.table(source), models.table(target), target.initializer_range)
    return dict(growth.tensors(weights.__getitem__)), target, made


def difference(source: PretrainedConfig, small: Weights, target: PretrainedConfig, large: Weights, **options) -> float:
    """The relative difference of everything the models give out, in float64, with padding and sequences of unequal length."""
    pair = Pair(source, target, Options(**options))
    return pair.difference(*pair.traces(small.__getitem__, large.__getitem__, probe(source, seed=1, samples=3), torch.float64))
