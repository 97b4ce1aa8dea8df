"""Plain attention and torch's fused kernels compute the same function, and what is measured is a layer of the model."""

import pytest
import torch
from torch import Tensor

from pipeline import models
from pipeline.growth.verification.probe import cast, fitted, probe
from pipeline.training.attention import GAIN, KINDS, faster, one_layer
from tests.helpers.samples import VARIANTS, sample

CLOSE = {"rtol": 1e-6, "atol": 1e-7}
"""float64, but for the softmax: Llama's plain attention takes it in float32 (measured: 1e-9)."""
FAMILIES = [name for name in VARIANTS if " " not in name]


def computed(variant: str, attention: str) -> list[Tensor]:
    """Output where a token counts, and the gradients, of a random model in training on a probe with padding."""
    config = sample(variant)
    model = cast(models.build(config, seed=3, attention=attention), torch.float64).train()
    inputs = fitted(probe(config), model)
    output = model(**inputs)[0]
    counted = output[inputs["attention_mask"] == 1] if "attention_mask" in inputs else output
    counted.square().sum().backward()
    return [counted.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("variant", FAMILIES)
def test_both_kinds_compute_the_same(variant):
    """Under masks of padding, and those of causal models."""
    fused, plain = (computed(variant, kind) for kind in KINDS)
    assert len(fused) == len(plain) > 10
    for one, other in zip(fused, plain, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("variant", FAMILIES)
def test_what_is_measured_is_a_layer_of_the_model(variant):
    config = sample(variant)
    first, *others = models.architecture_of(config).blocks()
    short = models.build(one_layer(config))
    layer, known = short.get_submodule(first), models.build(config).get_submodule(first)
    assert others and list(models.architecture_of(short.config).blocks()) == [first]
    shapes, expected = ({name: p.shape for name, p in module.named_parameters()} for module in (layer, known))
    assert shapes == expected
    assert models.architecture_of(config).stacks[0].blocks == 2, "the model's own config stays as it is"


def test_a_difference_that_may_be_noise_changes_nothing():
    assert (faster(1.0, 0.5), faster(1.0, 2.0), faster(1.0, 1.0)) == ("eager", "sdpa", "sdpa")
    assert (faster(0.99 * GAIN, 1.0), faster(1.01 * GAIN, 1.0)) == ("sdpa", "eager")
