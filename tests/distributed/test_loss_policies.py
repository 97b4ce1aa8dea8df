"""A loss or a gradient norm out of bounds, on two ranks: skipped updates, rewinds, and what a resumed run does."""

import math

import pytest

from tests.helpers.parity_task import BATCH

SCRIPT = "tests.helpers.scripts.loss_policies"
FIELDS = [*({"zero_stage": stage} for stage in range(4)), *({"zero_stage": s, "precision": "bf16"} for s in (0, 2, 3))]


@pytest.mark.parametrize("poison", [False, True], ids=["finite", "nan"])
@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_skipped_update_leaves_no_trace(workers, fields, poison):
    job = {"stage": {"micro_batch": BATCH // 4, **fields}, "poison": poison}
    result = workers.run(f"{SCRIPT}:skipping", job, world=2)
    assert result["equal"] == result["tensors"] > 20
    assert math.isfinite(result["loss"]) is not poison
    assert math.isfinite(result["norm"]) is not poison


@pytest.mark.parametrize("place", ["weights", "moments"])
@pytest.mark.parametrize("zero_stage", range(4))
def test_a_nan_is_never_saved(workers, zero_stage, place):
    job = {"stage": {"micro_batch": BATCH // 4, "zero_stage": zero_stage}, "place": place}
    said = workers.run(f"{SCRIPT}:saving_what_is_broken", job, world=2)
    assert "not finite at step 1, which is not saved" in said
