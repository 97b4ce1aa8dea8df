"""Verifying: the small and the large model must compute the same function, measured, not claimed.

Relative difference: max|small - large| / max|small| over the logits that count (padding excluded). Gates of a
published result, never measured in bf16: the stored float32 weights run in float64 at most 2e-6 (rounding of the
stored weights), run in float32 at most 1e-5 (rounding of the arithmetic as well).
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pipeline import models
from pipeline.streams import derive

GATES = {"float64": 2e-6, "float32": 1e-5}
EXACT = 1e-10
"""Tests only: grown in float64 without the final cast, both models run in float64."""

Weights = Callable[[str], Tensor]


@dataclass(frozen=True)
class Verification:
    """Measured relative differences of the logits beside their gates."""

    float64: float
    float32: float
    samples: int

    @property
    def lossless(self) -> bool:
        return self.float64 <= GATES["float64"] and self.float32 <= GATES["float32"]

    def as_json(self) -> dict:
        return {**asdict(self), "gates": GATES, "lossless": self.lossless}

    def __str__(self) -> str:
        return (f"relative difference of the logits {self.float64:.1e} in float64 (gate {GATES['float64']:.0e}), "
                f"{self.float32:.1e} in float32 (gate {GATES['float32']:.0e})")


def verify(source: PretrainedConfig, small: Weights, target: PretrainedConfig, large: Weights, *, seed: int = 0, samples: int = 2) -> Verification:
    """Run both models on the same probe in float64 and in float32. Weights are read by published name."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        logits = [run(config, read, probe(source, seed, samples), dtype) for config, read in ((source, small), (target, large))]
        found[str(dtype).removeprefix("torch.")] = relative_difference(*logits)
    return Verification(found["float64"], found["float32"], samples)


def run(config: PretrainedConfig, read: Weights, inputs: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The logits that count, from weights filled into a fresh model of `config`."""
    model = fill(models.build(config), read).to(dtype).eval()
    with torch.no_grad():
        floats = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        logits = model(**floats).logits
    mask = inputs.get("attention_mask")
    return logits[mask.bool()] if mask is not None else logits


def fill(model: PreTrainedModel, read: Weights) -> PreTrainedModel:
    """Copy every parameter of the model from `read(published name)`, keeping the dtype that is read."""
    table = models.table(model.config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for row in table.rows():
            tensor = read(row.name)
            parameters[row.module].data = tensor.detach().clone()
    model.tie_weights()
    return model


def probe(config: PretrainedConfig, seed: int, samples: int) -> dict[str, Tensor]:
    """Random inputs that touch every embedding kind: text with padding and short sequences, or images."""
    generator = torch.Generator().manual_seed(derive(seed, "probe"))
    if hasattr(config, "image_size"):
        shape = (samples, config.num_channels, config.image_size, config.image_size)
        return {"pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64)}
    length = config.max_position_embeddings
    lengths = torch.randint(max(1, length // 2), length + 1, (samples,), generator=generator)
    lengths[0] = length
    return {
        "input_ids": torch.randint(config.vocab_size, (samples, length), generator=generator),
        "token_type_ids": torch.randint(config.type_vocab_size, (samples, length), generator=generator),
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
    }


def relative_difference(small: Tensor, large: Tensor) -> float:
    """max|small - large| / max|small|."""
    return ((small - large).abs().max() / small.abs().max()).item()
