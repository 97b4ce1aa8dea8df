"""Verifying: the small and the large model must compute the same function, measured, not claimed.

Relative difference: max|small - R^T large| / max|small| over what the models give out (logits; of a bare encoder the
last hidden state and, where it has one, the pooler), padding excluded. Of a grown vocabulary R^T keeps the old logits.
Gates of a published result, never measured in bf16: the stored float32 weights run in float64 at most 2e-6 (rounding of
the stored weights), run in float32 at most 1e-5 (rounding of the arithmetic as well). Post-LN depth is exact up to
O(eps): the two norms of a new layer see what is normalised already, and add eps to a variance of 1. How much that makes
depends on every layer above (eps / variance is no bound: 7 times as much was seen), so it is measured: the part of the
difference that vanishes with eps is added to both gates.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.errors import UserError
from pipeline.growth.plan import GrowthPlan
from pipeline.growth.verification.probe import Trace, probe, require_finite, run
from pipeline.growth.verification.symmetry import symmetry
from pipeline.growth.verification.unseen import require_equal_rotation, require_equal_windows, table_difference
from pipeline.models.probes import Inputs
from pipeline.models.streaming import RunnableModel

GATES = {"float64": 2e-6, "float32": 1e-5}


@dataclass(frozen=True)
class Verification:
    """Measured relative differences beside their gates.

    tolerance: what post-LN depth adds to the gates, the part of `float64` that vanishes with the norms' epsilon.
    drift: the relative difference of the residual stream behind each source layer, in float64, stack by stack.
    symmetry: how far gradients of copies differ, by space. loss: cross-entropy of the probe before and after, where
    the vocabulary grew. stored: the difference, in float64, of a result stored in less than float32; the others are
    then those of the weights that it is the rounding of. tables: the relative difference of all rows that are looked up
    or added, those that the probe does not draw too, held to the gate of float64. table: the name of the worst.
    """

    float64: float
    float32: float
    samples: int
    tolerance: float = 0.0
    drift: tuple[float, ...] = ()
    symmetry: dict[str, float] = field(default_factory=dict)
    loss: tuple[float, float] | None = None
    stored: float | None = None
    tables: float = 0.0
    table: str | None = None

    @property
    def lossless(self) -> bool:
        outputs = all(getattr(self, dtype) <= gate + self.tolerance for dtype, gate in GATES.items())
        return outputs and self.tables <= GATES["float64"]

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "gates": {name: gate + self.tolerance for name, gate in GATES.items()},
            "lossless": self.lossless,
        }

    def __str__(self) -> str:
        return measurement_in_words(self.as_json())


def measurement_in_words(verification: Mapping[str, Any]) -> str:
    """A verification, as it is recorded, in half a sentence."""
    gates, stored = verification["gates"], verification.get("stored")
    measured = ", ".join(f"{verification[dtype]:.1e} in {dtype} (gate {gates[dtype]:.0e})" for dtype in GATES)
    rounding = "" if stored is None else f"; rounding to the stored dtype makes it {stored:.1e}"
    rows = (
        f"; rows of '{verification['table']}' differ by {verification['tables']:.1e}" if _misses(verification) else ""
    )
    return f"relative difference of the outputs {measured}{rows}{rounding}"


def _misses(verification: Mapping[str, Any]) -> bool:
    """Whether tables differ by more than their gate; records of earlier versions have none."""
    return bool(verification.get("tables", 0.0) > GATES["float64"])


class EquivalenceCheck:
    """A small and a large model, and the plan that made one of the other."""

    def __init__(self, small: RunnableModel, large: RunnableModel, plan: GrowthPlan):
        self.small, self.large, self.plan = small, large, plan

    def traces(self, inputs: Inputs, dtype: torch.dtype, zero_epsilon: bool = False) -> tuple[Trace, Trace]:
        """What both models do with the same inputs."""
        return run(self.small, inputs, dtype, zero_epsilon), run(self.large, inputs, dtype, zero_epsilon)

    def difference(self, small: Trace, large: Trace) -> float:
        """The largest relative difference of the outputs. Raises UserError that names one that cannot be compared."""
        return max(
            self._compared(f"output '{name}'", small.outputs[name], large.outputs[name], space)
            for name, space in self.plan.target.outputs.items()
        )

    def drift(self, small: Trace, large: Trace) -> tuple[float, ...]:
        """The relative difference of the residual stream behind each source layer, where its last copy stands; stack by
        stack. Raises UserError."""
        residual = self.plan.target.residual.name
        before, after = iter(small.layers), iter(large.layers)
        differences = []
        for source, target in zip(self.plan.source.stacks, self.plan.target.stacks, strict=True):
            hidden, grown = list(islice(before, source.layers)), list(islice(after, target.layers))
            origins = [origin.continued for origin in self.plan.layers[target.name]]
            last = {origin: index for index, origin in enumerate(origins) if origin is not None}
            differences += [
                self._compared(f"the residual stream after layer {layer}", hidden[layer], grown[last[layer]], residual)
                for layer in sorted(last)
            ]
        return tuple(differences)

    def losses(self, small: Trace, large: Trace, inputs: Inputs) -> tuple[float, float] | None:
        """Cross-entropy of the probe's own tokens, where new logits enter the softmax."""
        grown = "vocab" in self.plan.target.spaces and self.plan.maps["vocab"].appended
        logits = next((name for name, space in self.plan.target.outputs.items() if space == "vocab"), None)
        if logits is None or not grown:
            return None
        labels = inputs["input_ids"][inputs["attention_mask"].bool()]
        before, after = (F.cross_entropy(trace.outputs[logits], labels).item() for trace in (small, large))
        return before, after

    def _compared(self, what: str, small: Tensor, large: Tensor, space: str) -> float:
        """The relative difference of two activations of one space; of a larger grid of patches the tokens before it
        count. Raises UserError where there is none, which `max` and `<=` would pass over."""
        for model, values in (("source", small), ("target", large)):
            require_finite(f"{what} of the {model}", values)
        read = self.plan.maps[space].reads.apply_transpose(large, -1)
        grid = next((each for each in self.plan.source.spaces.values() if each.kind == "grid"), None)
        if grid and grid.size != self.plan.target.spaces[grid.name].size and small.dim() == 3:
            ahead = small.shape[1] - (grid.size - grid.prefix)
            small, read = small[:, :ahead], read[:, :ahead]
        difference = relative_difference(small, read)
        if math.isinf(difference):
            raise UserError(
                f"{what} of the source is 0 everywhere and that of the target is not, which no relative difference "
                "can measure; use a source that has been trained"
            )
        return difference


def verify(
    small: RunnableModel,
    large: RunnableModel,
    plan: GrowthPlan,
    *,
    stored: RunnableModel | None = None,
    samples: int = 2,
) -> Verification:
    """Run both models on the same probe in float32 and in float64, one at a time, and of it one module's weights.
    stored: `large` as it was rounded to less than float32, measured beside it, no part of the verdict. Raises UserError
    for outputs that are not finite, and for attention windows and rotary positions that differ."""
    require_equal_windows(small.config, large.config, plan)
    require_equal_rotation(small.config, large.config)
    check, inputs = EquivalenceCheck(small, large, plan), probe(small.config, plan.options.seed, samples)
    trace, copies = symmetry(large, plan, inputs)
    single = check.difference(run(small, inputs, torch.float32), trace)
    exact = check.traces(inputs, torch.float64)
    difference, drift, losses = check.difference(*exact), check.drift(*exact), check.losses(*exact, inputs)
    rounded = None if stored is None else check.difference(exact[0], run(stored, inputs, torch.float64))
    del exact
    tolerance = 0.0
    if plan.moves_norm_affines:
        bare = check.traces(inputs, torch.float64, zero_epsilon=True)
        tolerance = max(0.0, difference - check.difference(*bare))
    tables = table_difference(small, large, plan)
    return Verification(difference, single, samples, tolerance, drift, copies, losses, rounded, *tables)


def relative_difference(small: Tensor, large: Tensor) -> float:
    """max|small - large| / max|small|; 0 where both are equal, be it all zeros, and infinite where a number is not
    finite or `small` alone is all zeros."""
    largest = (small - large).abs().max()
    ratio = (largest / small.abs().max()).item() if largest else 0.0
    return ratio if math.isfinite(ratio) else math.inf
