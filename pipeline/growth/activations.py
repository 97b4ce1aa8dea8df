"""What a source's activations look like on a probe, for methods that decide by data."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from pipeline import models
from pipeline.growth.verification.probe import called, load, probe
from pipeline.models.architecture import ParamSpec
from pipeline.models.probes import Inputs
from pipeline.models.streaming import Read, ReadModel

Place = tuple[str, str, int]
"""(space, stack, layer)."""


@dataclass(frozen=True)
class ProbedSource:
    """A source's weights (published names), and its activations on a probe, each read when it is asked for; the model
    runs once.

    An activation of a space is the input of the matrix that reads it. seed: of the probe.
    """

    config: PretrainedConfig
    weight: Read
    seed: int = 0
    samples: int = 8

    def mean_magnitude(self, space: str, stack: str, layer: int) -> Tensor:
        """The mean of |activation| of every entry of a space in a layer: (size of the space,), float64. Raises KeyError
        where no matrix of the layer reads the space alone."""
        return self._magnitudes[space, stack, layer]

    @cached_property
    def _magnitudes(self) -> dict[Place, Tensor]:
        inputs, magnitudes = probe(self.config, self.seed, self.samples), dict[Place, Tensor]()
        model = load(ReadModel(self.config, self.weight), torch.float64)
        with torch.no_grad(), _observed(model, models.architecture_of(self.config).rows(), inputs, magnitudes):
            called(model, inputs)
        return magnitudes


@contextmanager
def _observed(
    model: nn.Module, params: Iterator[ParamSpec], inputs: Inputs, magnitudes: dict[Place, Tensor]
) -> Iterator[None]:
    """Hooks on every matrix of a layer that reads one space, for the time of a run."""
    mask, handles = inputs.get("attention_mask"), []
    for param in params:
        spaces = [name for axis in param.axes if axis.role == "reads" for name in axis.spaces]
        if param.use == "matmul" and param.layer is not None and len(spaces) == 1:
            module = model.get_submodule(param.module_name.rsplit(".", 1)[0])
            place = (spaces[0], param.stack, param.layer)
            handles.append(module.register_forward_pre_hook(_recorder(magnitudes, place, mask)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _recorder(
    magnitudes: dict[Place, Tensor], place: Place, mask: Tensor | None
) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def record(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        values = arguments[0].detach()
        values = values[mask.bool()] if mask is not None and values.dim() == 3 else values
        magnitudes[place] = values.abs().flatten(0, -2).mean(0).double()

    return record
