"""What the tests of this folder share: random weights, growing in memory, measuring."""

import copy
from collections.abc import Callable

import torch
from transformers import PretrainedConfig

from pipeline import models
from pipeline.expansion.target import settled
from pipeline.growth import methods
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.maps import IndexMap, Map
from pipeline.growth.plan import GrowthPlan, begun_module, plan_growth
from pipeline.growth.verification.equivalence import EquivalenceCheck, relative_difference
from pipeline.growth.verification.probe import Inputs, cast, fitted, probe, run
from pipeline.models.architecture import Architecture
from pipeline.models.streaming import ReadModel
from tests.helpers.samples import SMALL, VARIANTS, sample

EXACT = 1e-10
"""The largest relative difference of what is grown in float64, without a final cast, and run in float64."""
Weights = dict[str, torch.Tensor]
ARCHITECTURES = {variant: models.architecture_of(sample(variant)) for variant in VARIANTS}
"""Every variant at its small size: what a test decides by a rule, it reads here."""
POST_NORM = [variant for variant, architecture in ARCHITECTURES.items() if architecture.post_norm]
ROTARY = [variant for variant, architecture in ARCHITECTURES.items() if architecture.attentions[0].rope]
GROUPED = [variant for variant in ROTARY if "kv_heads" in models.family(variant.split()[0]).optional_sizes]
WORDS = [variant for variant, architecture in ARCHITECTURES.items() if "vocab" in architecture.spaces]
WITH_LOGITS = [variant for variant, architecture in ARCHITECTURES.items() if "logits" in architecture.outputs]


def randomised(config: PretrainedConfig, seed: int = 7, scale: float = 0.4) -> Weights:
    """Every parameter random, gains and biases too: no rule may rest on ones and zeros."""
    generator, architecture = torch.Generator().manual_seed(seed), models.architecture_of(config)
    tensors = {}
    for row in architecture.rows():
        tensors[row.name] = torch.randn(architecture.shape(row), generator=generator, dtype=torch.float64) * scale
        if row.axes[0].role in ("gain", "scales"):
            tensors[row.name] += 1 - row.offset
    return tensors


def runnable(config: PretrainedConfig, weights: Weights) -> ReadModel:
    """A model that can run."""
    return ReadModel(config, weights.__getitem__)


def times(factor: int, **sizes) -> dict:
    """Width by a whole multiple: more heads of the same size."""
    return {"hidden": factor * SMALL["hidden"], "heads": factor * SMALL["heads"], "mlp": factor * SMALL["mlp"], **sizes}


def planned(
    source: PretrainedConfig, target: PretrainedConfig, method: str = methods.DEFAULT, seed: int = 0, **options
) -> tuple[GrowthPlan, PretrainedConfig]:
    """The plan, of a learned method by its coefficients as they start, and the target's config with what the plan
    changes."""
    architectures = models.architecture_of(source), models.architecture_of(target)
    chosen = methods.parse(method, options, seed)
    module = begun_module(*architectures, chosen).requires_grad_(False) if methods.is_learned(method) else None
    plan = plan_growth(*architectures, chosen, models.initializer_range(target), module=module)
    return plan, settled(source, copy.deepcopy(target), plan, None)


def rows_of(weights: Weights) -> Callable[[str, range], torch.Tensor]:
    """As a growth reads its source."""
    return lambda name, rows: weights[name][rows.start : rows.stop]


def grown(
    weights: Weights, source: PretrainedConfig, target: PretrainedConfig, **options
) -> tuple[Weights, PretrainedConfig, GrowthPlan]:
    """Grown in float64, without a final cast."""
    plan, target = planned(source, target, **options)
    return dict(PlanExecutor(plan).tensors(rows_of(weights))), target, plan


def difference(
    source: PretrainedConfig, small: Weights, target: PretrainedConfig, large: Weights, plan: GrowthPlan
) -> float:
    """The relative difference of everything the models give out, in float64, with padding and sequences of unequal
    length."""
    check = EquivalenceCheck(runnable(source, small), runnable(target, large), plan)
    return check.difference(*check.traces(probe(source, seed=1, samples=3), torch.float64))


def chained(configs: list[PretrainedConfig], plans: list[GrowthPlan], small: Weights, large: Weights) -> float:
    """`difference` of the first and the last of several growths: what the last gives out is read back step by step."""
    inputs = probe(configs[0], seed=1, samples=3)
    before, after = (
        run(runnable(config, weights), inputs, torch.float64)
        for config, weights in ((configs[0], small), (configs[-1], large))
    )
    differences = []
    for name, space in plans[0].target.outputs.items():
        values = after.outputs[name]
        for plan in reversed(plans):
            values = plan.maps[space].reads.apply_transpose(values, -1)
        differences.append(relative_difference(before.outputs[name], values))
    return max(differences)


def gradients(config: PretrainedConfig, weights: Weights, inputs: Inputs, outputs: int) -> Weights:
    """The gradient, by published name, of a fixed function of the first `outputs` logits; zeros where none arrives."""
    model = cast(models.fill(models.build(config), weights.__getitem__).eval(), torch.float64)
    logits = model(**fitted(inputs, model)).logits[..., :outputs]
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    (logits.square() * direction).sum().backward()
    held = dict(model.named_parameters())
    return {
        row.name: torch.zeros_like(held[row.module]) if held[row.module].grad is None else held[row.module].grad
        for row in models.architecture_of(config).rows()
    }


def dense(chosen: Map) -> torch.Tensor:
    """The matrix of any map, float64."""
    return chosen.dense() if isinstance(chosen, IndexMap) else chosen.matrix


def writes_residual(architecture: Architecture, row: str) -> bool:
    """Whether the tensor called `row` writes the residual stream (a gain of the stream counts)."""
    param = next(param for param in architecture.rows() if param.name == row)
    return param.touches(architecture.residual.name, "writes", "scales", "gain")
