"""What a fit has left: the coefficients of a learned method, and what they cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import checkpoints
from pipeline.errors import UserError
from pipeline.growth.method import GrowthModule

PREFIX = "coefficients."
"""In the names of a fit's checkpoints: the module's place in the one that is trained."""


@dataclass(frozen=True)
class Fitted:
    """checkpoint: of the coefficients; None: they stay as the method starts them. facts: what the fit was, with its
    steps, losses, `flops` in all and `training_flops`."""

    checkpoint: Path | None
    facts: dict[str, Any]

    def module(self, begun: GrowthModule) -> GrowthModule:
        """`begun` with the coefficients, in float64, as a plan stores its maps. Raises UserError where they are of
        another growth."""
        assert isinstance(begun, nn.Module), "a learned method supplies an nn.Module"
        if self.checkpoint is not None:
            restore(begun, self.checkpoint)
        return begun.double().requires_grad_(False)


UNFITTED = Fitted(None, {"steps": 0, "flops": 0, "training_flops": 0})


def restore(module: nn.Module, checkpoint: Path) -> None:
    """Give a module the coefficients of a fit's checkpoint. Raises UserError where names or shapes differ."""
    state = checkpoints.raw(checkpoint)
    held = {name.removeprefix(PREFIX): tensor for name, tensor in state.tensors.items()}
    sought = dict(module.named_parameters())
    if odd := sorted(set(held) ^ set(sought)):
        raise UserError(f"{checkpoint}: its coefficients are of another growth ('{odd[0]}'); fit this one anew")
    for name, parameter in sought.items():
        tensor = held[name].tensor()
        if tensor.numel() != parameter.numel():
            raise UserError(
                f"{checkpoint}: '{name}' has {tensor.numel():,} coefficients, this growth {parameter.numel():,}; "
                "fit it anew"
            )
        with torch.no_grad():
            parameter.copy_(tensor.view_as(parameter))
