"""Norms at the ends of branches: what writes them is held as the stream is, at every width; new layers start their gain
at 0; and what grew there learns."""

from dataclasses import replace

import pytest
import torch

from pipeline import models
from pipeline.errors import UserError
from pipeline.growth import conditions, maps
from pipeline.growth.verification.probe import probe
from tests.helpers.growing import ARCHITECTURES, EXACT, difference, gradients, grown, randomised, times
from tests.helpers.samples import VOCAB, sample

ENDED = [variant for variant, architecture in ARCHITECTURES.items() if architecture.branch_ends]
WITH_LOSS = [variant for variant in ENDED if "logits" in ARCHITECTURES[variant].outputs]
ODD = {"hidden": 20, "heads": 5, "mlp": 33}


def test_a_norm_that_reads_the_stream_is_another_than_one_that_ends_a_branch():
    assert ENDED and not any(ARCHITECTURES[variant].post_norm for variant in ENDED)
    assert ARCHITECTURES["bert"].post_norm and not ARCHITECTURES["bert"].branch_ends


@pytest.mark.parametrize("source, target", [(2, 3), (4, 7), (6, 15), (5, 10)])
def test_the_norm_gives_the_stream_what_it_gave(source, target):
    """x + RMSNorm(y), y held as the stream is: E of what the small norm gives out, with zeros in the remainder."""
    x, y, gain = (torch.randn(source, dtype=torch.float64) for _ in range(3))
    eps, space = 0.3, maps.residual(source, target, rms=True)

    def norm(values: torch.Tensor, gain: torch.Tensor, eps: float) -> torch.Tensor:
        return gain * values / (values.square().mean() + eps).sqrt()

    large_gain = space.gains.scaled(space.eta).apply(gain, 0)
    large = space.writes.apply(x, 0) + norm(space.writes.apply(y, 0), large_gain, eps * space.eta**2)
    assert torch.allclose(large, space.writes.apply(x + norm(y, gain, eps), 0), atol=1e-14)
    assert large_gain[source * (target // source) :].all()


@pytest.mark.parametrize("variant", WITH_LOSS)
def test_what_grew_in_the_remainder_learns(variant):
    """Its rows give out 0 (noise cancels) and get a gradient, by a gain there that is not 0. A gain of 0 would be as
    lossless, and dead. A tied decoder reads zeros there, so that the last branch of all learns a step later."""
    source = sample(variant)
    weights = randomised(source)
    large, target, plan = grown(weights, source, sample(variant, **ODD))
    rows = {row.name: row for row in models.architecture_of(target).rows()}
    gains = [name for name, row in rows.items() if plan.target.ends_branch(row)]
    writers = [name for name, row in rows.items() if row.use == "matmul" and row.touches("branch", "writes")]
    assert len(gains) == len(writers) == 2 * target.num_hidden_layers
    found = gradients(target, large, probe(source), VOCAB)
    assert all((large[gain][12:] + rows[gain].offset).all() for gain in gains)
    for writer in writers[: -1 if target.tie_word_embeddings else None]:
        assert (found[writer][12:].abs().sum(1) > 1e-6).all(), writer
    dead = {name: torch.cat([large[name][:12], torch.full((8,), -rows[name].offset)]) for name in gains}
    assert difference(source, weights, target, {**large, **dead}, plan) <= EXACT
    found = gradients(target, {**large, **dead}, probe(source), VOCAB)
    assert all(found[writer][12:].abs().max() < 1e-12 for writer in writers)


@pytest.mark.parametrize("variant", WITH_LOSS)
def test_the_gain_of_a_new_layer_is_0_and_learns_first(variant):
    """What writes the branch is its origin's: an input of 0 would blow its gradient up by 1 / sqrt(eps)."""
    source = sample(variant, eps=1e-12)
    weights = randomised(source)
    large, target, plan = grown(weights, source, sample(variant, eps=1e-12, layers=4))
    found = gradients(target, large, probe(source), VOCAB)
    largest = max(gradient.abs().max() for name, gradient in found.items())
    origins, silent = {each.target: each.origin for each in plan.tensors}, 0
    for row in plan.target.rows():
        if row.layer is None or not plan.layers["layers"][row.layer].new:
            continue
        if plan.target.ends_branch(row):
            assert (large[row.name] == -row.offset).all()
            assert 0 < found[row.name].abs().max() <= largest < 1e4
            silent += 1
        else:
            assert torch.equal(large[row.name], weights[origins[row.name]])
            assert not found[row.name].any()
    assert silent == 2 * (target.num_hidden_layers - source.num_hidden_layers)


@pytest.mark.parametrize("variant", ENDED)
def test_noise_that_cancels_is_refused_in_new_layers_alone(variant):
    source = sample(variant)
    with pytest.raises(UserError, match="divide that 0 by the root of its epsilon; use depth 'zero', which starts the"):
        grown(randomised(source), source, sample(variant, **times(2, layers=4)), depth="cancel")
    assert grown(randomised(source), source, sample(variant, **times(2)), depth="cancel")[2].lossless


def test_layer_norms_at_the_ends_of_branches_need_whole_multiples():
    """Behind a LayerNorm the remainder is 0, or a bias, and the stream needs the mean of what is added."""
    small, odd, double = (
        replace(models.architecture_of(sample("gemma2 untied", hidden=width, heads=width // 4)), rms=False)
        for width in (12, 20, 24)
    )
    (reason,) = conditions.inexact(small, odd)
    assert reason == (
        "a LayerNorm at the end of a branch cannot grow losslessly from 12 to 20: it gives out its bias where the "
        "residual stream needs the mean; choose a multiple of 12"
    )
    assert not conditions.inexact(small, double)
    y, gain, bias = (torch.randn(12, dtype=torch.float64) for _ in range(3))
    space, norm = maps.residual(12, 24), torch.nn.functional.layer_norm
    large = norm(space.writes.apply(y, 0), (24,), space.gains.apply(gain, 0), space.writes.apply(bias, 0), 0.1)
    assert torch.allclose(large, space.writes.apply(norm(y, (12,), gain, bias, 0.1), 0), atol=1e-14)
