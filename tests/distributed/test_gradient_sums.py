"""Gradients of many micro-batches and ranks are summed in float32, in bf16 too; their norm is known in every step, and
tells in that step where one is no number."""

import math

import pytest

from tests.helpers.rotation import rotated

SCRIPT = "tests.helpers.scripts.gradients"
MICRO_BATCHES = 64
"""Of a step, over all ranks."""


def settings(zero_stage: int, precision: str = "bf16", samples: int = MICRO_BATCHES, **more: object) -> dict:
    """The job of a step of so many micro-batches of one sample. more: fields of the stage."""
    fields = {"zero_stage": zero_stage, "precision": precision, "batch": samples, "micro_batch": 1, **more}
    return {"stage": fields, "samples": samples}


NO_CLIP = {"optimizer": {"clip": 0.0}}


@rotated(one_in=2, of=("zero_stage", "world"))
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("zero_stage", [1, 2, 3])
def test_64_micro_batches_are_summed_in_fp32(workers, zero_stage, world):
    """1e-5: 64 terms in float32, each rounded to half a unit in the last place (6e-8), lie below 4e-6 together. bf16
    sums are 1e-2 off (the test below)."""
    told = workers.run(f"{SCRIPT}:distance", settings(zero_stage, **NO_CLIP), world)
    assert told["distance"] < 1e-5
    assert told["norm"] == pytest.approx(told["wanted"], rel=1e-5)


@rotated(one_in=2, of="zero_stage")
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_so_are_those_of_autocast(workers, zero_stage):
    """As above, of products in bf16 whose gradients of weights are rounded as torch's autocast rounds them."""
    told = workers.run(f"{SCRIPT}:distance", settings(zero_stage, "bf16-autocast", 16, **NO_CLIP), 2)
    assert told["distance"] < 1e-5
    assert told["norm"] == pytest.approx(told["wanted"], rel=1e-5)


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_bf16_sums_are_what_they_were_where_they_are_asked_for(workers, zero_stage):
    told = workers.run(f"{SCRIPT}:distance", settings(zero_stage, gradient_sums="bf16", **NO_CLIP), 2)
    assert 1e-3 < told["distance"] < 5e-2


def test_zero_0_reduces_one_micro_batch_in_fp32(workers):
    """And rounds the sum of the ranks to bf16 once: at most 2 to the power of -9 of each entry."""
    told = workers.run(f"{SCRIPT}:distance", settings(0, samples=2, **NO_CLIP), 2)
    assert told["distance"] < 2**-9 and told["norm"] == pytest.approx(told["wanted"], rel=2**-9)
    assert workers.run(f"{SCRIPT}:distance", settings(0, samples=1, **NO_CLIP), 1)["distance"] == 0


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("zero_stage", range(4))
def test_the_norm_is_that_before_clipping(workers, zero_stage, clip):
    told = workers.run(f"{SCRIPT}:distance", settings(zero_stage, "fp32", 4, optimizer={"clip": clip}), 2)
    assert told["norm"] == pytest.approx(told["wanted"], rel=1e-5) and told["norm"] > 0.5


def test_products_are_the_stages_own_while_it_trains(workers):
    """An expansion behind it in the same process is computed in float32."""
    job = settings(1, "fp32", 2, matmul_precision="medium")
    assert workers.run(f"{SCRIPT}:products", job, 2) == ["medium", "highest"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_bound_of_the_norm_is_the_stages_own(workers, tmp_path, precision):
    """DeepSpeed's loader takes the one of the checkpoint, which may be of a smaller model."""
    job = settings(1, precision, 2, optimizer={"clip": 0.5})
    more = {"folder": str(tmp_path), "other": {"optimizer": {"clip": 2.0}}}
    assert workers.run(f"{SCRIPT}:bound", {**job, **more}, 2) == 2.0


@rotated(one_in=3, of=("zero_stage", "precision"))
@pytest.mark.parametrize("value, clip", [(math.inf, 0.0), (math.nan, 0.5)])
@pytest.mark.parametrize("zero_stage, precision", [(s, p) for s in range(4) for p in ("fp32", "bf16")])
def test_an_infinite_gradient_is_seen_in_its_own_step(workers, zero_stage, precision, value, clip):
    """The loss of that step is finite, and so are the weights behind it, for the update is left out."""
    samples = 2 if (zero_stage, precision) == (0, "bf16") else 4
    job = settings(zero_stage, precision, samples, optimizer={"clip": clip})
    told = workers.run(f"{SCRIPT}:poisoned", {**job, "value": str(value), "warns": True}, 2)
    losses, norms = zip(*[map(float, pair) for pair in told["told"]], strict=True)
    assert all(map(math.isfinite, losses)) and told["finite"]
    assert [math.isfinite(norm) for norm in norms] == [True, False, True]


@pytest.mark.parametrize("zero_stage, precision", [(0, "fp32"), (0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16")])
def test_a_step_without_a_gradient_is_a_step(workers, zero_stage, precision):
    job = settings(zero_stage, precision, 2, optimizer={"clip": 0.5})
    told = workers.run(f"{SCRIPT}:poisoned", {**job, "value": "0", "warns": False}, 2)
    norms = [float(norm) for _, norm in told["told"]]
    assert norms[1] == 0 < min(norms[0], norms[2]) and told["finite"]


@pytest.mark.parametrize("zero_stage, precision", [(0, "fp32"), (1, "bf16"), (2, "bf16")])
def test_it_is_seen_where_nobody_asks_before_the_update(workers, zero_stage, precision):
    job = settings(zero_stage, precision, 4, **NO_CLIP)
    told = workers.run(f"{SCRIPT}:poisoned", {**job, "value": "inf", "warns": False}, 2)
    assert [math.isfinite(float(norm)) for _, norm in told["told"]][:2] == [True, False]
    assert math.isfinite(float(told["told"][1][0]))
