"""The memory that a dry run states is what engines hold: their tensors, summed up, and DeepSpeed's buffers."""

import pytest

from pipeline import models
from pipeline.accounting.memory import FP32, Buffers, ModelStates, model_states, parameter_groups
from pipeline.models.architecture import Architecture
from pipeline.optim.optimizers import OPTIMIZERS
from tests.helpers.parity_task import BATCH, model_config, stage
from tests.helpers.rotation import rotated

HELD, BUCKETS = (f"tests.helpers.scripts.engine_memory:{name}" for name in ("held", "buckets"))
SIZES = {"layers": 3, "hidden": 96, "mlp": 384}
"""Large enough that what a model holds besides (losses, buffers, norms) is little."""
BUCKET = 5_000_000
"""Numbers of a bucket: more than the model has."""


def architecture() -> Architecture:
    return models.architecture_of(model_config("bert-pre-ln", **SIZES))


def stated(
    zero_stage: int, precision: str, optimizer: str, rounds: int, sums: str | None, buffers: Buffers = Buffers()
) -> ModelStates:
    groups = parameter_groups(architecture(), OPTIMIZERS[optimizer]())
    how = {"bf16": precision != "fp32", "accumulates": rounds > 1, "fp32_sums": sums == "fp32"}
    return model_states(groups, zero_stage=zero_stage, ranks=2, buffers=buffers, **how)


@rotated(one_in=2, of=("zero_stage", "precision", "sums", "optimizer", "rounds"))
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "precision, sums, optimizer, rounds",
    [
        ("fp32", None, "adamw", 2),
        ("bf16", "fp32", "adamw", 1),
        ("fp32", None, "muon", 2),
        pytest.param("bf16", "bf16", "adamw", 1, marks=pytest.mark.slow),
        pytest.param("bf16", "bf16", "adamw", 2, marks=pytest.mark.slow),
        pytest.param("fp32", None, "sgd", 1, marks=pytest.mark.slow),
    ],
)
def test_an_engine_holds_what_is_stated(workers, zero_stage, precision, sums, optimizer, rounds):
    fields = {"zero_stage": zero_stage, "precision": precision, "micro_batch": BATCH // 2 // rounds}
    fields["gradient_sums"] = sums
    job = {"family": "bert-pre-ln", "sizes": SIZES, "stage": fields, "optimizer": {"kind": optimizer}}
    expected = stated(zero_stage, precision, optimizer, rounds, sums)
    assert workers.run(HELD, job, world=2) == pytest.approx(expected.held, rel=0.1)


@rotated(one_in=3, of=("zero_stage", "paired", "precision", "sums"), alike=lambda zero_stage, **_: zero_stage)
@pytest.mark.parametrize("precision, sums", [("fp32", None), ("bf16", "bf16"), ("bf16", "fp32"), ("fp16", None)])
@pytest.mark.parametrize("zero_stage, paired", [(1, True), (2, False), (2, True), (3, False)])
def test_an_engine_has_the_buckets_that_its_keys_ask_for(workers, zero_stage, paired, precision, sums):
    """Sums in float32 are reduced in a copy besides, which lasts as long as that takes."""
    if (zero_stage, sums) == (1, "fp32"):
        pytest.skip("BF16_Optimizer has none, and the keys are refused")
    if precision == "fp16" and not workers.supports(2, fp16=True):
        pytest.skip("DeepSpeed's accelerator does not support fp16 on this device")
    keys = {"zero_optimization": {"reduce_bucket_size": BUCKET, "overlap_comm": paired}}
    fields = {"zero_stage": zero_stage, "precision": precision, "micro_batch": BATCH // 2, "gradient_sums": sums}
    fields["deepspeed"] = keys
    job = {"family": "bert-pre-ln", "sizes": SIZES, "stage": fields, "optimizer": {"kind": "adamw"}}
    summed = "fp32" if precision == "fp16" else sums
    states = stated(zero_stage, precision, "adamw", 1, summed, Buffers.of(stage(**fields)))
    copied = FP32 * architecture().parameters if summed == "fp32" and zero_stage > 1 else 0
    assert workers.run(BUCKETS, job, world=2) == states.bucket - copied
