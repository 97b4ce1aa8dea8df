"""ZeRO 0 to 3 on two ranks follow one plain PyTorch process: accumulation, clipping, two groups of different decay."""

import pytest
import torch

from pipeline import models
from pipeline.doctor.parity import train_plainly
from tests.helpers.parity_task import BATCH, batch, model_config, stage

STEPS = 6
ENGINE = "tests.helpers.scripts.engine_losses:train"


@pytest.fixture(scope="module")
def plain() -> dict[str, list[float]]:
    return {name: _plain(name) for name in ("bert-pre-ln", "vit")}


def _plain(name: str, apart: bool = False) -> list[float]:
    """torch's own AdamW and clipping, one process, whole batches. apart: as of `batch`."""
    config = model_config(name)
    net = models.build(config, seed=5).train()
    settings = stage(micro_batch=1).optimizer
    matrices = {row.module for row in models.architecture_of(config).rows() if row.use in ("matmul", "both")}
    split = [[p for n, p in net.named_parameters() if (n in matrices) is decayed] for decayed in (True, False)]
    shared = {"lr": 1e-3, "betas": settings.betas, "eps": settings.eps}
    optimizer = torch.optim.AdamW(
        [
            {"params": split[0], "weight_decay": settings.weight_decay, **shared},
            {"params": split[1], "weight_decay": 0.0, **shared},
        ]
    )
    batches = [batch(name, step, 0, BATCH, apart) for step in range(STEPS)]
    return train_plainly(net, optimizer, [(_masked(whole.inputs), whole.labels) for whole in batches], settings.clip)


def _masked(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The numbers of documents as a mask of transformers' own kind, entry by entry."""
    others = {name: value for name, value in inputs.items() if name != "documents"}
    if "documents" not in inputs:
        return others
    mask = [[[[a == b for b in row] for a in row]] for row in inputs["documents"].tolist()]
    return {**others, "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name, checkpointing", [("bert-pre-ln", False), ("vit", True), ("vit", 2)])
def test_losses_follow_plain_pytorch(workers, plain, name, zero_stage, checkpointing):
    """1e-5: float32 sums in another order; measured at most 1e-6 over these steps."""
    fields = {"zero_stage": zero_stage, "micro_batch": BATCH // 4, "activation_checkpointing": checkpointing}
    losses = workers.run(ENGINE, {"family": name, "stage": fields, "steps": STEPS}, world=2)
    assert losses == pytest.approx(plain[name], abs=1e-5)
    assert len(set(losses)) == STEPS


@pytest.mark.parametrize("zero_stage, precision, near", [(1, "fp32", 1e-5), (3, "fp32", 1e-5), (2, "bf16", 3e-2)])
def test_documents_that_are_kept_apart(workers, plain, zero_stage, precision, near):
    """The tolerances are those of the other tests."""
    fields = {"zero_stage": zero_stage, "micro_batch": BATCH // 4, "precision": precision}
    job = {"family": "bert-pre-ln", "stage": fields, "steps": STEPS, "apart": True}
    expected = _plain("bert-pre-ln", apart=True)
    assert workers.run(ENGINE, job, world=2) == pytest.approx(expected, abs=near)
    assert expected != pytest.approx(plain["bert-pre-ln"], abs=1e-3), "a mask changes the loss"


def test_bf16_stays_near(workers, plain):
    """bf16 has 8 bits of mantissa: losses of about 4 agree to some 1e-2; the loss itself is taken in float32."""
    fields = {"zero_stage": 2, "micro_batch": BATCH // 4, "precision": "bf16"}
    losses = workers.run(ENGINE, {"family": "bert-pre-ln", "stage": fields, "steps": STEPS}, world=2)
    assert losses == pytest.approx(plain["bert-pre-ln"], abs=3e-2)
    assert losses != pytest.approx(plain["bert-pre-ln"], abs=1e-6)
