"""What a model's code multiplies token embeddings by, and rounds to the dtype that the model is loaded in."""

from collections.abc import Collection

import torch

from pipeline.growth.plan import GrowthPlan
from pipeline.models.architecture import Architecture

ROUNDING = (torch.bfloat16, torch.float16)


def remarks(plan: GrowthPlan, dtypes: Collection[torch.dtype]) -> tuple[str, ...]:
    """Of a source that holds one of `dtypes`, how far its result's embeddings are from its own where both are loaded in
    it, in words: Gemma's code rounds the root of the width, and two rounded roots are in another ratio."""
    before, after = _scale(plan.source), _scale(plan.target)
    lines = []
    for dtype in ROUNDING if before != after else ():
        small, large = (torch.tensor(scale).to(dtype).item() for scale in (before, after))
        beyond = (large / small) / (after / before) - 1
        if dtype in dtypes and beyond:
            name = str(dtype).removeprefix("torch.")
            lines.append(
                f"in {name} the model's own code rounds what it multiplies token embeddings by ({before:g} to "
                f"{small:g}, {after:g} to {large:g}): loaded in {name}, they are off by {abs(beyond):.2g} in the "
                "result against the source; in float32 they are not"
            )
    return tuple(lines)


def _scale(architecture: Architecture) -> float:
    """1 where the model's code takes them as they are."""
    return next((row.scale for row in architecture.params if row.use in ("lookup", "both") and row.scale != 1.0), 1.0)
