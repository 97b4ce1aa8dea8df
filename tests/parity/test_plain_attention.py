"""A cap on attention scores is never lost: models that have one compute with plain attention, whatever they are asked
for."""

import pytest
import torch

from pipeline import models
from pipeline.growth.verification.probe import cast, fitted, probe
from pipeline.models import plain_attention
from pipeline.models.streaming import ReadModel, streamed_model
from tests.helpers.growing import randomised
from tests.helpers.samples import VARIANTS, sample

CAPPED = [variant for variant in VARIANTS if getattr(sample(variant), plain_attention.CAP, None)]


def outputs(model) -> torch.Tensor:
    with torch.no_grad():
        return model(**fitted(probe(model.config, seed=1, samples=3), model))[0]


@pytest.mark.parametrize("asked", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", CAPPED)
def test_a_capped_model_has_its_cap(variant, asked):
    """Against one without the cap, in a whole model and in one that is read module by module."""
    config, without = sample(variant), sample(variant)
    setattr(without, plain_attention.CAP, None)
    weights = randomised(config)
    capped, free = (
        outputs(cast(models.fill(models.build(each, attention=asked), weights.__getitem__).eval(), torch.float64))
        for each in (config, without)
    )
    assert models.attention_of(config, asked) == "eager" and (capped - free).abs().max() > 1e-3
    streamed = cast(streamed_model(ReadModel(config, weights.__getitem__, asked)), torch.float64)
    assert torch.equal(outputs(streamed), capped)


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in CAPPED])
def test_the_others_have_what_they_are_asked_for(variant):
    assert [models.attention_of(sample(variant), asked) for asked in ("sdpa", "eager")] == ["sdpa", "eager"]
