"""Stochastic depth (Huang et al., arXiv:1603.09382), as DeiT has it (arXiv:2012.12877): in training, what a branch of a
layer adds to the residual stream is left out for a sample with the layer's rate p, and divided by 1 - p for the others.

The dense layers that write the residual stream do it, as a class of their own that has no state: a model keeps its
parameters and their names, and evaluates as it does without. A layer's draws come from torch's generator, as dropout's
do, in front of its forward, and stay for its backward pass: a layer that is computed again drops what it dropped
before, and a compiled one takes them as inputs, so that layers of different rates share a graph.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import UserError
from pipeline.models.architecture import Architecture, LayerStack, in_layer
from pipeline.models.config_keys import DROP_PATH_RATE


def rates(layers: int, rate: float) -> list[float]:
    """The rate of each layer: 0 of the first, `rate` of the last, evenly between them."""
    return [rate * layer / max(1, layers - 1) for layer in range(layers)]


def install(model: nn.Module, architecture: Architecture, rate: Any) -> None:
    """Have the layers of a model drop their branches in training. A rate of 0 changes nothing. Raises UserError for one
    that is no probability below 1."""
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise UserError(f"{DROP_PATH_RATE} is {rate!r}; it must be at least 0 and below 1")
    for stack in architecture.stacks:
        block, branches = architecture.block(stack), _branches(architecture, stack)
        for layer, own in enumerate(rates(stack.layers, float(rate)) if rate else ()):
            ends = [model.get_submodule(in_layer(name, layer)) for name in branches]
            _LayerDrop(model.get_submodule(in_layer(block, layer)), ends, own)


def _branches(architecture: Architecture, stack: LayerStack) -> list[str]:
    """The modules of a layer whose output is added to the residual stream, `{i}` for its number."""
    residual = architecture.residual.name
    return [
        row.module_name.removesuffix(".weight")
        for row in architecture.templates(stack)
        if row.use == "matmul" and row.touches(residual, "writes")
    ]


class _BranchEnd(nn.Linear):
    """The dense layer at a branch's end. scale: (samples,), by which its output is multiplied in training: 0, or
    1 / (1 - rate)."""

    scale: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        output = super().forward(inputs)
        if not self.training:
            return output
        return output * self.scale.to(output.dtype).view(-1, *[1] * (output.dim() - 1))


class _LayerDrop:
    """Draws for all branches of a layer, which share a rate."""

    def __init__(self, layer: nn.Module, ends: list[nn.Module], rate: float):
        self.rate, self.ends = rate, ends
        for end in ends:
            assert type(end) is nn.Linear, f"a branch ends in a {type(end).__name__}"
            end.__class__, end.scale = _BranchEnd, torch.ones(1)
        layer.register_forward_pre_hook(self.draw)

    def draw(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """inputs: the hidden states come first, (samples, …)."""
        if not layer.training:
            return
        hidden = inputs[0]
        kept = torch.rand(len(self.ends), len(hidden), device=hidden.device) >= self.rate
        for end, scale in zip(self.ends, kept.to(hidden.dtype) / (1 - self.rate), strict=True):
            end.scale = scale
