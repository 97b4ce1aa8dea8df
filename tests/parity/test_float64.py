"""In float64 no module of any model computes in less, whatever its code casts to."""

import pytest
import torch
from torch import nn
from torch.nn.functional import softmax
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline import models
from pipeline.growth.verification.probe import cast, fitted, probe
from pipeline.models import float64
from pipeline.models.streaming import ReadModel, streamed_model
from tests.helpers.growing import randomised
from tests.helpers.samples import VARIANTS, sample


class Lesser(TorchDispatchMode):
    """Notes every operation that gives floating-point numbers of less than float64."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        given = operation(*args, **(kwargs or {}))
        each = given if isinstance(given, (tuple, list)) else [given]
        if any(isinstance(x, torch.Tensor) and x.dtype in (torch.float32, torch.bfloat16) for x in each):
            self.found.append(str(operation))
        return given


def outputs(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**fitted(probe(model.config, seed=1, samples=3), model))[0]


def filled(config, attention="sdpa"):
    return models.fill(models.build(config, attention=attention), randomised(config).__getitem__).eval()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_operation_gives_less(variant, attention):
    model = cast(filled(sample(variant), attention), torch.float64)
    with Lesser() as lesser:
        outputs(model)
    assert lesser.found == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_the_same_function(variant):
    """As the model's own forward to the rounding of float32, and the same by fused and by plain attention."""
    config = sample(variant)
    own = outputs(filled(config).double())
    fused, plain = (outputs(cast(filled(config, each), torch.float64)) for each in ("sdpa", "eager"))
    assert (fused - own).abs().max() < 1e-5 * own.abs().max()
    torch.testing.assert_close(plain, fused, rtol=1e-11, atol=1e-12)


def test_a_model_that_is_not_prepared_rounds():
    """Which is what the casts are widened for."""
    with Lesser() as lesser:
        outputs(filled(sample("llama")).double())
    assert lesser.found


class Casting(nn.Module):
    """Casts in every way that models have, and fails where it is asked to."""

    def forward(self, x, fails=False):
        if fails:
            raise RuntimeError
        less = torch.ones(3, dtype=torch.bfloat16).float()
        return (
            x.float(),
            x.to(torch.float32),
            x.to(dtype=torch.float32),
            x.to("cpu", torch.float32),
            x.to(less),
            x.type(torch.float32),
            x.type_as(less),
            x.sum(dtype=torch.float32),
            softmax(x, dim=-1, dtype=torch.float32),
            x.softmax(-1, dtype=torch.float32),
            torch.softmax(input=x, dim=-1, dtype=torch.float32),
            torch.arange(3, dtype=torch.float32),
            torch.arange(3).float(),
        )


def test_every_way_to_cast_is_widened_inside_alone():
    model = float64.prepare(nn.Sequential(Casting()))[0]
    assert {each.dtype for each in model(torch.ones(3, dtype=torch.float64))} == {torch.float64}
    with pytest.raises(RuntimeError):
        model(torch.ones(3), fails=True)
    assert torch.ones(3, dtype=torch.float64).float().dtype == torch.float32
    assert model(torch.ones(3, dtype=torch.bfloat16))[0].dtype == torch.float32, "what is less already is no rounding"


class Viewing(nn.Module):
    def forward(self, x):
        return x.view(torch.float32)


def test_bits_are_read_as_they_are():
    x = torch.randn(3, dtype=torch.float64)
    assert torch.equal(float64.prepare(nn.Sequential(Viewing()))[0](x), x.view(torch.float32))


def test_weights_are_read_as_without_it():
    """A reader that rounds to float32, from inside a streamed model's forward."""
    config = sample("llama")
    exact = {name: tensor.double() + 1e-12 for name, tensor in randomised(config).items()}
    rounded = cast(streamed_model(ReadModel(config, lambda name: exact[name].float())), torch.float64)
    whole = {name: tensor.float() for name, tensor in exact.items()}
    assert torch.equal(
        outputs(rounded), outputs(cast(models.fill(models.build(config), whole.__getitem__).eval(), torch.float64))
    )
