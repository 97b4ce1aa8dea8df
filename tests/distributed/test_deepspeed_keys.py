"""Keys of `deepspeed:` in real engines: the losses are those without them, and checkpoints are read and resumed."""

import pytest

from pipeline import reshard
from pipeline.checkpoints.layouts import CheckpointLayout, require_layout
from tests.helpers.parity_task import BATCH, stage
from tests.helpers.rotation import rotated

ENGINE, STEPS = "tests.helpers.scripts.engine_losses:train", 4
RESUME = "tests.helpers.scripts.engine_resume"
OFFLOAD = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
BUCKETS = {"reduce_bucket_size": 500, "overlap_comm": True, "reduce_scatter": False}
BY_STAGE = {
    1: BUCKETS | {"allgather_bucket_size": 300, "use_multi_rank_bucket_allreduce": False},
    2: BUCKETS | {"allgather_bucket_size": 300, "reduce_scatter": True},
    3: BUCKETS
    | {
        "stage3_prefetch_bucket_size": 100,
        "stage3_param_persistence_threshold": 0,
        "stage3_model_persistence_threshold": 100,
        "stage3_max_live_parameters": 2000,
        "stage3_max_reuse_distance": 2000,
        "stage3_module_granularity_threshold": 1,
        "stage3_use_all_reduce_for_fetch_params": True,
    },
}
"""Buckets smaller than the model, so that there are several."""


def losses(workers, **fields) -> list[float]:
    job = {"family": "bert-pre-ln", "stage": {"micro_batch": BATCH // 4, **fields}, "steps": STEPS}
    return workers.run(ENGINE, job, world=2)


@pytest.mark.parametrize("zero_stage, precision, near", [(1, "fp32", 1e-5), (2, "bf16", 3e-2), (3, "fp32", 1e-5)])
def test_losses_do_not_depend_on_buckets(workers, zero_stage, precision, near):
    """1e-5: float32 sums in another order; bf16 rounds to 8 bits of mantissa."""
    fields = {"zero_stage": zero_stage, "precision": precision}
    plain = losses(workers, **fields)
    given = {"zero_optimization": BY_STAGE[zero_stage]}
    assert losses(workers, **fields, deepspeed=given) == pytest.approx(plain, abs=near)
    assert len(set(plain)) == STEPS


@rotated(one_in=2, of=("zero_stage", "precision"))
@pytest.mark.parametrize(
    "zero_stage, precision, near", [(1, "fp32", 1e-5), (1, "bf16", 3e-2), (2, "fp32", 1e-5), (3, "bf16", 3e-2)]
)
def test_an_offloaded_optimizer_trains_is_resumed_and_read(workers, tmp_path, zero_stage, precision, near):
    """The losses are those of an optimizer that is not offloaded; resumed, they are the same to the bit. The files are
    of the layout that the stage states, and written for a stage without the key, that one goes on from them."""
    fields = {"zero_stage": zero_stage, "precision": precision, "micro_batch": BATCH // 4}
    job = {"family": "bert-pre-ln", "stage": {**fields, "deepspeed": OFFLOAD}, "saved": 2, "steps": 4}
    told = workers.run(f"{RESUME}:resumed", {**job, "folder": str(tmp_path)}, world=2)
    assert told["whole"] == pytest.approx(losses(workers, **fields)[:4], abs=near)
    assert told["behind"] == told["whole"][2:]
    saved, elsewhere = next(tmp_path.glob("step-*")), tmp_path / "resharded" / "step"
    offloaded, plain = (CheckpointLayout.of(stage(**fields, **more), 2) for more in ({"deepspeed": OFFLOAD}, {}))
    assert require_layout(saved).facts(saved) == {key: getattr(offloaded, key) for key in offloaded.kind.keys}
    reshard(saved, elsewhere, plain)
    again = {**job, "place": str(elsewhere), "again": {"deepspeed": {}}}
    assert workers.run(f"{RESUME}:loaded", again, world=2) == pytest.approx(told["whole"][2:], abs=near)
