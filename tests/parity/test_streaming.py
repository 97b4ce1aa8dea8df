"""A model that reads its weights while it runs is the model: the same outputs and gradients, nothing left behind."""

import weakref

import pytest
import torch

from pipeline import models
from pipeline.growth.verification.probe import cast, fitted, probe, run
from pipeline.models.streaming import ReadModel, recompute_layers, streamed_model
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
    """In float64: a layer that runs twice may add up what reaches it in another order."""
    config = sample(variant)
    weights, inputs = randomised(config), probe(config, seed=1, samples=3)
    whole = cast(models.fill(models.build(config), weights.__getitem__).eval(), torch.float64)
    expected, target = loss(whole, inputs)
    target.backward()
    gradients: dict[str, torch.Tensor] = {}

    def on_gradient(name: str, gradient: torch.Tensor) -> None:
        gradients[name] = gradients.get(name, 0) + gradient  # a tied tensor's two parts add up

    streamed = streamed_model(ReadModel(config, weights.__getitem__), on_gradient)
    streamed = recompute_layers(cast(streamed, torch.float64))
    output, target = loss(streamed, inputs)
    target.backward()
    assert torch.equal(output, expected)
    for row in models.architecture_of(config).rows():
        gradient = dict(whole.named_parameters())[row.module].grad
        if gradient is not None:
            atol = 1e-14 * gradient.abs().max()
            assert torch.allclose(gradients[row.name], gradient, rtol=1e-12, atol=atol), row.name
    assert all(parameter.is_meta for parameter in streamed.parameters())


@pytest.mark.parametrize("variant", ["bert-pre-ln", "llama tied"])
def test_one_module_is_in_memory_at_a_time(variant):
    """Every read is of a module that runs now: no more than one module's parameters are alive at any moment."""
    config = sample(variant, layers=4)
    weights, alive, most = randomised(config), [], 0

    def read(name: str) -> torch.Tensor:
        nonlocal most
        tensor = weights[name].clone()
        alive.append(weakref.ref(tensor))
        most = max(most, sum(reference() is not None for reference in alive))
        return tensor

    with torch.no_grad():
        model = streamed_model(ReadModel(config, read))
        model(**fitted(probe(config), model))
    assert len(alive) >= len(weights) and most <= 3  # a weight, its bias, and a norm's around them


def test_what_a_module_computes_once_stays_real():
    """Buffers (rotary frequencies, position ids) are computed while the model is built and read from no file."""
    for variant in ("llama", "bert"):
        whole, streamed = models.build(sample(variant)), streamed_model(ReadModel(sample(variant), {}.__getitem__))
        buffers = dict(streamed.named_buffers())
        assert buffers and all(torch.equal(buffers[name], buffer) for name, buffer in whole.named_buffers())


def test_a_read_that_fails_leaves_the_model_empty():
    def read(name: str) -> torch.Tensor:
        raise OSError(name)

    model = streamed_model(ReadModel(sample("llama"), read))
    with pytest.raises(OSError, match="embed_tokens"):
        model(**fitted(probe(sample("llama")), model))
    assert all(parameter.is_meta for parameter in model.parameters())


def test_a_weight_that_cannot_be_read_is_no_fault_of_the_models_code():
    """Which is refused where it does not run."""
    config = sample("llama")
    with pytest.raises(KeyError, match="embed_tokens"):
        run(ReadModel(config, {}.__getitem__), probe(config), torch.float64)
