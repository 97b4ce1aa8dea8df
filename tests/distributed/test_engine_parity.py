"""ZeRO 0 to 3 on two ranks follow one plain PyTorch process: accumulation, clipping, two groups of different decay."""

from functools import cache

import pytest
import torch

from pipeline import models
from pipeline.doctor.parity import train_plainly
from tests.helpers.parity_task import BATCH, ROUNDS, batch, model_config, stage
from tests.helpers.rotation import rotated

STEPS = 6
ENGINE = "tests.helpers.scripts.engine_losses:train"
OTHERS = (
    *("roberta", "xlm-roberta", "distilbert", "modernbert", "deit", "dinov2", "dinov2-with-registers"),
    *("gpt2", "mistral", "qwen3", "phi3", "opt"),
)
"""Families that one stage is enough for."""


@cache
def plain(name: str, apart: bool = False, clipped: bool = True) -> list[float]:
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
    causal = models.is_causal(config)
    inputs = [(_masked(whole.inputs, causal), whole.labels) for whole in batches]
    return train_plainly(net, optimizer, inputs, settings.clip if clipped else float("inf"))


def _masked(inputs: dict[str, torch.Tensor], causal: bool) -> dict[str, torch.Tensor]:
    """The numbers of documents as a mask of transformers' own kind, entry by entry."""
    others = {name: value for name, value in inputs.items() if name != "documents"}
    if "documents" not in inputs:
        return others
    mask = [
        [[[a == b and (not causal or later <= place) for later, b in enumerate(row)] for place, a in enumerate(row)]]
        for row in inputs["documents"].tolist()
    ]
    positions = {"position_ids": torch.arange(len(mask[0][0]))[None]} if causal else {}
    return {**others, **positions, "attention_mask": torch.tensor(mask)}


FACTORS = {"hidden": 0.5, "embeddings": 2.0, "head": 3.0, "vectors": 0.25}


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_each_kind_of_parameter_has_its_rate(workers, zero_stage):
    """1e-5: as below."""
    net = models.build(model_config("vit"), seed=5).train()
    settings = stage(micro_batch=1).optimizer
    places = {"vit.embeddings": "embeddings", "classifier.weight": "head", "vit.layers": "hidden"}
    groups = []
    for name, parameter in net.named_parameters():
        kind = next((kind for place, kind in places.items() if name.startswith(place)), "vectors")
        kind = kind if parameter.dim() > 1 else "vectors"
        decay = 0.0 if kind == "vectors" or parameter.dim() == 3 else settings.weight_decay
        groups.append({"params": [parameter], "lr": 1e-3 * FACTORS[kind], "weight_decay": decay})
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps)
    batches = [batch("vit", step, 0, BATCH) for step in range(STEPS)]
    expected = train_plainly(net, optimizer, [(whole.inputs, whole.labels) for whole in batches], settings.clip)
    rates = {**settings.model_dump(), "rates": FACTORS}
    fields = {"zero_stage": zero_stage, "micro_batch": BATCH // 4, "optimizer": rates}
    losses = workers.run(ENGINE, {"family": "vit", "stage": fields, "steps": STEPS}, world=2)
    assert losses == pytest.approx(expected, abs=1e-5)


CHECKPOINTED = [("bert-pre-ln", False), ("vit", True), ("vit", 2), ("llama", False)]


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name, checkpointing", CHECKPOINTED)
def test_losses_follow_plain_pytorch(workers, name, zero_stage, checkpointing):
    """1e-5: float32 sums in another order; measured at most 1e-6 over these steps."""
    follows(workers, name, zero_stage, checkpointing)


@pytest.mark.parametrize("zero_stage, precision", [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32"), (1, "bf16")])
def test_without_clipping_no_gradient_is_scaled(workers, zero_stage, precision):
    """Which the losses show: those of clipped gradients are others."""
    optimizer = {**stage(micro_batch=1).optimizer.model_dump(), "clip": 0}
    fields = {"zero_stage": zero_stage, "micro_batch": BATCH // 4, "optimizer": optimizer, "precision": precision}
    losses = workers.run(ENGINE, {"family": "vit", "stage": fields, "steps": STEPS}, world=2)
    near = 1e-5 if precision == "fp32" else 1e-2
    assert losses == pytest.approx(plain("vit", clipped=False), abs=near)
    if precision == "fp32":
        assert losses != pytest.approx(plain("vit"), abs=2 * near)


@pytest.mark.parametrize("name", OTHERS)
def test_so_do_those_of_every_family(workers, name):
    follows(workers, name, zero_stage=2, checkpointing=True)


def follows(workers, name: str, zero_stage: int, checkpointing: bool) -> None:
    fields = {"zero_stage": zero_stage, "micro_batch": BATCH // 4, "activation_checkpointing": checkpointing}
    losses = workers.run(ENGINE, {"family": name, "stage": fields, "steps": STEPS}, world=2)
    assert losses == pytest.approx(plain(name), abs=1e-5)
    assert len(set(losses)) == STEPS


@pytest.mark.parametrize(
    "name, zero_stage, precision, near",
    [
        ("bert-pre-ln", 1, "fp32", 1e-5),
        ("bert-pre-ln", 3, "fp32", 1e-5),
        ("bert-pre-ln", 2, "bf16", 3e-2),
        ("llama", 2, "fp32", 1e-5),
        ("gpt2", 3, "fp32", 1e-5),
        ("opt", 2, "fp32", 1e-5),
    ],
)
def test_documents_that_are_kept_apart(workers, name, zero_stage, precision, near):
    """The tolerances are those of the other tests."""
    fields = {"zero_stage": zero_stage, "micro_batch": BATCH // 4, "precision": precision}
    job = {"family": name, "stage": fields, "steps": STEPS, "apart": True}
    expected = plain(name, apart=True)
    assert workers.run(ENGINE, job, world=2) == pytest.approx(expected, abs=near)
    assert expected != pytest.approx(plain(name), abs=1e-3), "a mask changes the loss"


@rotated(one_in=2, of=("zero_stage", "name"), alike=lambda zero_stage, name: zero_stage)
@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["bert-pre-ln", "llama"])
def test_bf16_stays_near(workers, name, zero_stage):
    """bf16 has 8 bits of mantissa: losses of about 4 agree to some 1e-2; the loss itself is taken in float32. Stage 0
    has one micro-batch a rank."""
    rounds = ROUNDS if zero_stage else 1
    fields = {"zero_stage": zero_stage, "micro_batch": BATCH // 2 // rounds, "precision": "bf16"}
    job = {"family": name, "stage": fields, "steps": STEPS, "rounds": rounds}
    losses = workers.run(ENGINE, job, world=2)
    assert losses == pytest.approx(plain(name), abs=1e-2)
    assert losses != pytest.approx(plain(name), abs=1e-6)
