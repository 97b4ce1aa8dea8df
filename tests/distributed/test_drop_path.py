"""Stochastic depth under the engine: plain PyTorch that drops by the same draws; ranks, a resume and repeated images
change nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import models
from pipeline.rng import derive
from tests.helpers.cli import lemon_here
from tests.helpers.parity_task import BATCH, ROUNDS, batch, model_config, stage
from tests.helpers.runs import copied, losses, same_losses

ENGINE = "tests.helpers.scripts.engine_losses:train"
STEPS, WORLD, RATE = 6, 2, 0.5
MICRO = BATCH // WORLD // ROUNDS


def dropping(net: nn.Module, pixels: Tensor) -> Tensor:
    """The logits of a ViT of two layers, whose second one drops branches: a loop over the modules of a model that drops
    nothing. Both layers draw, the first for nothing."""
    hidden = net.vit.embeddings(pixels)
    for layer, rate in zip(net.vit.layers, (0.0, RATE), strict=True):
        first, second = ((torch.rand(2, len(pixels)) >= rate) / (1 - rate)).unbind()
        hidden = hidden + first.view(-1, 1, 1) * layer.attention(layer.layernorm_before(hidden))[0]
        hidden = hidden + second.view(-1, 1, 1) * layer.mlp(layer.layernorm_after(hidden))
    return net.classifier(net.vit.layernorm(hidden)[:, 0])


def plain() -> list[float]:
    """One process; each micro-batch under the seed of its place in the whole batch."""
    net, settings = models.build(model_config("vit"), seed=5).train(), stage(micro_batch=1).optimizer
    matrices = {row.module for row in models.architecture_of(net.config).rows() if row.use == "matmul"}
    split = [[p for n, p in net.named_parameters() if (n in matrices) is decayed] for decayed in (True, False)]
    groups = [{"params": split[0], "weight_decay": settings.weight_decay}, {"params": split[1], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=settings.betas, eps=settings.eps)
    found = []
    for step in range(STEPS):
        optimizer.zero_grad()
        total = 0.0
        for place in range(BATCH // MICRO):
            part = batch("vit", step, place * MICRO, MICRO)
            torch.manual_seed(derive(0, "dropout", "t", step, place))
            loss = F.cross_entropy(dropping(net, part.inputs["pixel_values"]), part.labels) * MICRO / BATCH
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(net.parameters(), settings.clip)
        optimizer.step()
        found.append(total)
    return found


@pytest.mark.parametrize("zero_stage, checkpointing", [(0, True), (1, False), (2, True), (3, True)])
def test_losses_follow_plain_pytorch(workers, zero_stage, checkpointing):
    """1e-5: float32 sums in another order."""
    fields = {"zero_stage": zero_stage, "micro_batch": MICRO, "activation_checkpointing": checkpointing}
    job = {"family": "vit", "sizes": {"drop_path": RATE}, "stage": fields, "steps": STEPS}
    found = workers.run(ENGINE, job, world=WORLD)
    assert found == pytest.approx(plain(), abs=1e-5)
    assert found != pytest.approx(workers.run(ENGINE, {**job, "sizes": {}}, world=WORLD), abs=1e-3)


def test_in_bf16_it_stays_near(workers):
    """bf16 has 8 bits of mantissa; the loss is taken in float32."""
    fields = {"zero_stage": 2, "micro_batch": MICRO, "precision": "bf16"}
    job = {"family": "vit", "sizes": {"drop_path": RATE}, "stage": fields, "steps": STEPS}
    assert workers.run(ENGINE, job, world=WORLD) == pytest.approx(plain(), abs=2e-2)


DROPPED = ("models.small.drop_path=0.5", "data.repeats=3", "data.evaluation_crop=0.5", "data.mixup=0.8")
SHORT = ("stages.small.schedule.horizon=12 steps", "stages.small.micro_batch=4", "data.augment=crop-flip")


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory) -> Path:
    """12 steps of 16 samples, that are four groups of 4 images with three views of each, in part."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    lemon_here("train", copied(finished, folder), "--stage", "small", *DROPPED, *SHORT)
    return folder


def test_a_resume_gives_the_same_numbers(uninterrupted, finished, tmp_path):
    """From step 10, and on other ranks, with workers that read ahead."""
    path = copied(finished, tmp_path)
    shutil.copytree(uninterrupted / "run" / "small", tmp_path / "run" / "small", dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "run" / "small" / "checkpoints" / "step-0000012")
    facts = tmp_path / "run" / "small" / "stage.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "status": "running"}))
    lemon_here("train", path, "--stage", "small", *DROPPED, *SHORT, "data.workers=2")
    assert losses(tmp_path / "run", "small") == losses(uninterrupted / "run", "small")


@pytest.mark.parametrize("without", ["models.small.drop_path=0.5", "data.repeats=3"])
def test_ranks_change_nothing_and_each_key_does(uninterrupted, finished, tmp_path, without):
    """The mean of the same micro-batches."""
    for name, keys in (("one", DROPPED), ("less", [key for key in DROPPED if key != without])):
        (tmp_path / name).mkdir()
        lemon_here("train", copied(finished, tmp_path / name), "--stage", "small", *keys, *SHORT, "processes=1")
    same_losses(tmp_path / "one", uninterrupted, "small")
    less, all_of_them = (losses(folder / "run", "small") for folder in (tmp_path / "less", uninterrupted))
    assert less[0] == all_of_them[0] and less[1] != all_of_them[1], "evaluation is as it was"
