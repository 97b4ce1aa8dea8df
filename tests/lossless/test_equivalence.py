"""What cannot be measured is no small difference: NaN, infinite values and outputs that are zero everywhere."""

import math

import pytest
import torch

from pipeline.errors import UserError
from pipeline.growth.verification.equivalence import Verification, relative_difference, verify
from pipeline.growth.verification.probe import probe
from pipeline.growth.verification.symmetry import CopyGradients
from tests.helpers.growing import Weights, grown, planned, randomised, runnable, times
from tests.helpers.samples import sample


def verified(variant: str, small: Weights, changed: Weights, **sizes: object) -> Verification:
    """The verification of a growth without noise of which some tensors were `changed` afterwards."""
    source = sample(variant)
    large, target, plan = grown(small, source, sample(variant, **times(2), **sizes), method="fpi")
    return verify(runnable(source, small), runnable(target, {**large, **changed}), plan)


def test_a_second_output_that_is_not_finite_is_refused():
    """The pooled output is the second one: a NaN in it must not hide behind the first."""
    bias = torch.full((24,), math.nan, dtype=torch.float64)
    with pytest.raises(UserError, match=r"^output 'pooler_output' of the target holds NaN") as caught:
        verified("bert encoder", randomised(sample("bert encoder")), {"pooler.dense.bias": bias})
    assert "\n" not in str(caught.value)


def test_an_output_without_an_axis_of_its_own_is_compared_at_every_token():
    """The numbers that tell where an answer ends: of the second output, moved at some tokens alone."""
    small = randomised(sample("bert question-answering"))
    assert verified("bert question-answering", small, {}).lossless
    weight = small["qa_outputs.weight"].repeat(1, 2) / 2
    weight[1, 3] += 0.1
    assert verified("bert question-answering", small, {"qa_outputs.weight": weight}).float64 > 1e-3


def test_a_source_that_is_not_finite_is_refused():
    source = sample("vit")
    weights = randomised(source)
    large, target, plan = grown(weights, source, sample("vit", **times(2)))
    weights["classifier.bias"] = torch.full((3,), math.nan, dtype=torch.float64)
    with pytest.raises(UserError, match=r"^output 'logits' of the source holds NaN or infinite values"):
        verify(runnable(source, weights), runnable(target, large), plan)


def test_new_logits_that_are_not_finite_are_refused():
    """R^T leaves them out, the softmax does not."""
    weights = randomised(sample("gpt2 untied"))
    head = torch.full((70, 24), math.nan, dtype=torch.float64)
    head[:61] = 0.1
    with pytest.raises(UserError, match=r"^output 'logits' of the target holds NaN or infinite values"):
        verified("gpt2 untied", weights, {"lm_head.weight": head}, vocab=70)


@pytest.mark.parametrize("variant", ["llama", "gpt2", "gemma2", "bert-pre-ln"])
def test_what_no_reader_looks_at_a_norm_sees(variant):
    """The remainder of the row of a token that the probe does not draw: zero or the mean, and nothing else."""
    source, wide = sample(variant), sample(variant, hidden=16, heads=4)
    weights = randomised(source)
    large, target, plan = grown(weights, source, wide)
    small = runnable(source, weights)
    name = next(row.name for row in plan.target.rows() if row.touches("vocab", "reads"))
    assert verify(small, runnable(target, large), plan).lossless
    drawn = set(probe(source, plan.options.seed, 2)["input_ids"].flatten().tolist())
    large[name][next(token for token in range(61) if token not in drawn), -1] += 1e-3
    found = verify(small, runnable(target, large), plan)
    assert not found.lossless and found.table == name and found.tables > 1e-4


def test_outputs_that_are_all_zero_are_equal():
    weights = {
        name: torch.zeros_like(tensor) if name.startswith("classifier") else tensor
        for name, tensor in randomised(sample("vit")).items()
    }
    measured = verified("vit", weights, {})
    assert (measured.float64, measured.float32) == (0.0, 0.0) and measured.lossless
    with pytest.raises(UserError, match=r"^output 'logits' of the source is 0 everywhere and that of the target"):
        verified("vit", weights, {"classifier.bias": torch.ones(3, dtype=torch.float64)})


@pytest.mark.parametrize(
    "small, large, expected",
    [
        ([2.0, -4.0], [2.0, -3.0], 0.25),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 0.0], [0.0, 1.0], math.inf),
        ([1.0, 2.0], [1.0, math.nan], math.inf),
        ([math.nan, 2.0], [math.nan, 2.0], math.inf),
        ([math.inf, 2.0], [math.inf, 2.0], math.inf),
    ],
)
def test_the_relative_difference(small, large, expected):
    assert relative_difference(torch.tensor(small), torch.tensor(large)) == expected


def test_a_gradient_that_is_not_finite_is_refused():
    plan, _ = planned(sample("vit"), sample("vit", **times(2)))
    copies = CopyGradients(plan)
    name = "vit.encoder.layer.0.intermediate.dense.weight"
    gradient = torch.ones(plan.target.shape(copies.params[name]))
    gradient[5, 0] = math.nan
    copies.on_gradient(name, gradient)
    with pytest.raises(UserError, match=r"^the gradient of 'mlp' of the target holds NaN or infinite values"):
        copies.measures()
