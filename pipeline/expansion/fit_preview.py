"""What fitting a learned method will take, for `lemon plan`: coefficients, FLOPs, memory."""

from typing import Any

from pipeline import models
from pipeline.accounting.flops import Cost
from pipeline.accounting.memory import FP32
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.config.fit import FitChoice
from pipeline.expansion.planning import ExpansionPlan
from pipeline.growth import methods
from pipeline.growth.making import FitNeeds

BATCH, MICRO_BATCH = 256, 32
"""Of the step whose FLOPs are shown: samples, and those of a pass."""


def fit_content(expansion: ExpansionPlan, cost: Cost) -> dict[str, Any] | None:
    """What `lemon plan` says of a fit, as data; None where nothing is to be fitted, or that depends on the source.
    cost: of a training sample of the target."""
    options = expansion.growth.options
    if expansion.fitted is None or methods.find(options.method).needs_source:
        return None
    architectures = models.architecture_of(expansion.small), models.architecture_of(expansion.large)
    needs, steps = FitNeeds.of(*architectures, options, expansion.growth.init_std), FitChoice().steps
    making = needs.making
    once = making.forward + making.backward + making.recompute
    return {
        "coefficients": sum(needs.coefficients),
        "making": vars(making),
        "steps": steps,
        "batch": BATCH,
        "micro_batch": MICRO_BATCH,
        "flops": {
            "target": steps * BATCH * (cost.train + cost.recompute),
            "making": steps * BATCH // MICRO_BATCH * once,
            "making_charged_per_sample": steps * BATCH * once,
        },
        "memory": FP32 * (4 * sum(needs.coefficients) + needs.fixed + needs.made),
    }


def fit_lines(fit: dict[str, Any]) -> list[str]:
    """The same for people."""
    flops, making = fit["flops"], fit["making"]
    size = f"{fit['steps']} steps of {fit['batch']} samples, {fit['micro_batch']} a pass"
    pass_ = f"{making['forward']:.3g} forward, {making['backward']:.3g} backward, {making['recompute']:.3g} again"
    return [
        f"fit          {fit['coefficients']:,} coefficients; {size}: {flops['target']:.3g} FLOPs in the target",
        f"             and {flops['making']:.3g} to make its weights, once for every pass ({pass_} behind",
        "             activation checkpoints); a counter that charges each sample for them, as LiGO's does, says",
        f"             {flops['making_charged_per_sample']:.3g}. Memory: {amount(fit['memory'])} and activations",
    ]
