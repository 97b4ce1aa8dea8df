"""A model that reads its weights while it runs is the model: outputs and gradients to the bit, nothing held behind."""

import weakref

import pytest
import torch

from pipeline import models
from pipeline.growth.verification.probe import fitted, probe
from pipeline.models.streaming import lazy, recomputed
from tests.helpers.samples import VARIANTS, sample


def randomised(config) -> dict[str, torch.Tensor]:
    generator, architecture = torch.Generator().manual_seed(5), models.architecture_of(config)
    return {row.name: torch.randn(architecture.shape(row), generator=generator) * 0.3 for row in architecture.rows()}


def loss(model, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
    outputs = model(**fitted(inputs, model))
    first = outputs[next(iter(models.architecture_of(model.config).outputs))]
    return first.detach(), sum(outputs[name].square().sum() for name in models.architecture_of(model.config).outputs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients_equal_the_whole_models(variant):
    config = sample(variant)
    weights, inputs = randomised(config), probe(config, seed=1, samples=3)
    whole = models.fill(models.build(config), weights.__getitem__).eval()
    expected, target = loss(whole, inputs)
    target.backward()
    found: dict[str, torch.Tensor] = {}

    def took(name: str, gradient: torch.Tensor) -> None:
        found[name] = found.get(name, 0) + gradient

    streamed = recomputed(lazy(config, weights.__getitem__, took))
    given, target = loss(streamed, inputs)
    target.backward()
    assert torch.equal(given, expected)
    for row in models.architecture_of(config).rows():
        wanted = dict(whole.named_parameters())[row.module].grad
        if wanted is not None:
            assert torch.allclose(found[row.name], wanted, rtol=1e-6, atol=1e-7 * wanted.abs().max()), (
                row.name
            )  # a tied tensor's two parts add up
    assert all(parameter.is_meta for parameter in streamed.parameters())


@pytest.mark.parametrize("variant", ["bert-pre-ln", "llama tied"])
def test_one_layer_is_held_at_a_time(variant):
    """Every read is of a module that runs now: no more than one module's parameters are alive at any moment of a forward."""
    config = sample(variant, layers=4)
    weights, alive, most = randomised(config), [], 0

    def read(name: str) -> torch.Tensor:
        nonlocal most
        tensor = weights[name].clone()
        alive.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in alive))
        return tensor

    with torch.no_grad():
        model = lazy(config, read)
        model(**fitted(probe(config), model))
    assert len(alive) >= len(weights) and most <= 3  # a weight, its bias, and a norm's around them
