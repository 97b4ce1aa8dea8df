"""The memory that a dry run states is what engines hold: their tensors, summed up."""

import pytest

from pipeline import models
from pipeline.accounting.memory import model_states, parameter_groups
from pipeline.optim.optimizers import OPTIMIZERS
from tests.helpers.parity_task import BATCH, model_config
from tests.helpers.rotation import rotated

HELD = "tests.helpers.scripts.engine_memory:held"
SIZES = {"layers": 3, "hidden": 96, "mlp": 384}
"""Large enough that what a model holds besides (losses, buffers, norms) is little."""


def stated(zero_stage: int, precision: str, optimizer: str, rounds: int, sums: str | None) -> int:
    architecture = models.architecture_of(model_config("bert-pre-ln", **SIZES))
    groups = parameter_groups(architecture, OPTIMIZERS[optimizer]())
    how = {"bf16": precision == "bf16", "accumulates": rounds > 1, "fp32_sums": sums == "fp32"}
    return model_states(groups, zero_stage=zero_stage, ranks=2, **how).held


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
    assert workers.run(HELD, job, world=2) == pytest.approx(expected, rel=0.1)
