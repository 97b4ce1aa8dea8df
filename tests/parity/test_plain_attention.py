"""A cap on attention scores is never lost: models that have one compute with plain attention, whatever they are asked
for."""

import pytest
import torch

from pipeline import models
from pipeline.growth.verification.probe import cast, fitted, probe
from pipeline.models import plain_attention
from pipeline.models.streaming import ReadModel, streamed_model
from tests.helpers.growing import ARCHITECTURES, randomised
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


@pytest.mark.parametrize("variant", [variant for variant in ARCHITECTURES if ARCHITECTURES[variant].attentions[0].rope])
def test_plain_attention_in_float64_is_the_same_function(variant):
    """As transformers' own to float32, in whose numbers it takes the softmax, and not as it to float64."""
    weights = randomised(sample(variant))
    theirs, ours = (
        models.fill(models.build(sample(variant), attention="eager"), weights.__getitem__).eval() for _ in range(2)
    )
    models.of_config(theirs.config).prepare_float64(ours)
    assert ours.config._attn_implementation == plain_attention.FLOAT64
    for module, norm in models.of_config(theirs.config)._norms(theirs):
        if norm.float64:
            module.forward = lambda x, module=module, norm=norm: norm.float64(module, x)
    one, other = outputs(theirs.double()), outputs(ours.double())
    assert 1e-12 < (one - other).abs().max() / one.abs().max() < 1e-5
    fused = cast(models.fill(models.build(sample(variant)), weights.__getitem__).eval(), torch.float64)
    assert models.attention_of(sample(variant)) == "eager" or torch.allclose(outputs(fused), other, rtol=1e-11)
