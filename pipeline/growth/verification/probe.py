"""Running a model on a probe: what it gives out, and what its layers do on the way."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

import pipeline
from pipeline import models
from pipeline.accounting.flops import cost
from pipeline.errors import UserError, one_line
from pipeline.models import float64
from pipeline.models.architecture import Architecture
from pipeline.models.probes import PROBE_TOKENS, Inputs
from pipeline.models.streaming import RunnableModel, streamed_model
from pipeline.rng import derive

PACKAGE = Path(pipeline.__file__).parent
NO_MEMORY = "DefaultCPUAllocator"
"""Who complains in torch where a tensor finds no room."""
EPSILONS = ("eps", "variance_epsilon")
"""What modules call the epsilon of a norm."""


@dataclass
class Trace:
    """What came out: outputs and the residual stream behind each layer, positions that count only, (…, D)."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    layers: list[Tensor] = field(default_factory=list)


def probe(config: PretrainedConfig, seed: int = 0, samples: int = 2) -> Inputs:
    """Random inputs that touch every embedding kind: text with padding and short sequences, or images."""
    generator = torch.Generator().manual_seed(derive(seed, "probe"))
    return models.of_config(config).probe_inputs(config, generator, samples)


def spent(source: PretrainedConfig, target: PretrainedConfig, samples: int, moves_norm_affines: bool = False) -> int:
    """FLOPs of a verification: both models forward in two precisions, once more without epsilon where the norms'
    affines move, and of the large one a backward pass that recomputes its layers."""
    small, large = (cost(models.architecture_of(config), positions(config)) for config in (source, target))
    return samples * ((2 + moves_norm_affines) * (small.forward + large.forward) + large.train)


def positions(config: PretrainedConfig) -> dict[str, int]:
    """How many tokens, patches, … one sample of the probe has."""
    length = min(getattr(config, "max_position_embeddings", PROBE_TOKENS), PROBE_TOKENS)
    return models.of_config(config).positions(config, {"block": length, "scored": length})


def load(source: RunnableModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model, evaluating in `dtype`; it reads its weights module by module while it runs."""
    return cast(streamed_model(source), dtype)


def cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The model in `dtype`; in float64 no module of it computes in less."""
    if dtype == torch.float64:
        float64.prepare(model)
    return model.to(dtype)


def without_epsilon(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, its norms' epsilon a billionth of what it was. For float64 only."""
    for module in model.modules():
        for name in EPSILONS:
            if isinstance(epsilon := getattr(module, name, None), float):
                setattr(module, name, epsilon * 1e-9)
    return model


def run(source: RunnableModel, inputs: Inputs, dtype: torch.dtype, zero_epsilon: bool = False) -> Trace:
    """The trace of a model; zero_epsilon: without its norms' epsilon."""
    model = load(source, dtype)
    return observe(without_epsilon(model) if zero_epsilon else model, inputs)


def observe(model: PreTrainedModel, inputs: Inputs) -> Trace:
    """The trace of a model, in its own dtype."""
    trace, mask = Trace(), inputs.get("attention_mask")
    with torch.no_grad(), _watched(model, trace, None if mask is None else mask.bool()):
        outputs = called(model, inputs)
    trace.outputs = observed_outputs(outputs, model, inputs)
    return trace


def called(model: PreTrainedModel, inputs: Inputs) -> ModelOutput:
    """What a model gives out. Raises UserError where its code does not run: a config that no code obeys, a user's own
    forward that takes one dtype alone."""
    try:
        return model(**fitted(inputs, model))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if _is_no_fault_of_the_model(error):
            raise
        dtype = str(model.dtype).removeprefix("torch.")
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"the model's own code does not run on a probe in {dtype} ({reason})") from error


def _is_no_fault_of_the_model(error: Exception) -> bool:
    """Memory has run out; or what failed was called by a module of this package: one that reads weights, say."""
    if isinstance(error, torch.OutOfMemoryError) or NO_MEMORY in str(error):
        return True
    callers = {Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)}
    return any(PACKAGE in caller.parents for caller in callers - {Path(__file__), Path(float64.__file__)})


def observed_outputs(outputs: ModelOutput, model: PreTrainedModel, inputs: Inputs) -> dict[str, Tensor]:
    """What counts of a model's output, by name."""
    outputs_given = given_out(outputs, models.architecture_of(model.config))
    return {name: _counted(output.detach(), inputs.get("attention_mask")) for name, output in outputs_given.items()}


def given_out(outputs: ModelOutput, architecture: Architecture) -> dict[str, Tensor]:
    """What a model gives out, by name, the last axis that of its space: a single number gets one."""
    single = {name for name, space in architecture.outputs.items() if architecture.spaces[space].kind == "number"}
    return {name: outputs[name].unsqueeze(-1) if name in single else outputs[name] for name in architecture.outputs}


def require_finite(what: str, values: Tensor) -> None:
    """Raises UserError for NaN and infinite values: no comparison with one fails, and `max` may pass over it."""
    if not values.isfinite().all():
        dtype = str(values.dtype).removeprefix("torch.")
        raise UserError(
            f"{what} holds NaN or infinite values on the probe, run in {dtype}; the weights are damaged (lemon check "
            "tells) or have diverged, use an older checkpoint; or the noise is too large"
        )


def fitted(inputs: Inputs, model: PreTrainedModel) -> Inputs:
    """The inputs in the model's dtype, images interpolated to the size it takes."""
    floats = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    images = floats.get("pixel_values")
    if images is not None and images.shape[-1] != model.config.image_size:
        floats["pixel_values"] = F.interpolate(
            images, size=model.config.image_size, mode="bicubic", align_corners=False
        )
    return floats


def _counted(output: Tensor, mask: Tensor | None) -> Tensor:
    return output[mask.bool()] if mask is not None and output.dim() == 3 else output


@contextmanager
def _watched(model: PreTrainedModel, trace: Trace, mask: Tensor | None) -> Iterator[None]:
    """Hooks on every layer, for the time of a run."""
    architecture = models.architecture_of(model.config)

    def layer_ended(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        trace.layers.append(_counted(output if isinstance(output, Tensor) else output[0], mask))

    blocks = [model.get_submodule(place) for place in architecture.blocks()]
    handles = [block.register_forward_hook(layer_ended) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
