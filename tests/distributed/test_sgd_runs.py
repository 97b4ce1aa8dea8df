"""SGD with momentum through a whole run: trained, interrupted, resumed, grown with its momentum, trained on."""

import json
from pathlib import Path

import pytest
import torch

from pipeline import checkpoints
from pipeline.optim.optimizers import SGD, AdamW
from tests.helpers.cli import lemon_here
from tests.helpers.runs import STEPS, copied, interrupted, losses, records

SGD_STAGES = [
    *(f"stages.{stage}.optimizer={{kind: sgd, momentum: 0.8, weight_decay: 0.1}}" for stage in ("small", "large")),
    *(f"stages.{stage}.schedule.peak=0.05" for stage in ("small", "large")),
    "stages.grown.optimizer_state=grow",
]


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory) -> Path:
    """The small model, trained."""
    folder = tmp_path_factory.mktemp("sgd")
    lemon_here("train", copied(finished, folder), "--stage", "small", *SGD_STAGES)
    return folder


def test_it_resumes_and_its_momentum_grows(uninterrupted, tmp_path):
    path, run = interrupted(uninterrupted, tmp_path, "small", 20), tmp_path / "run"
    for stage in ("small", "grown", "large"):
        lemon_here("train", path, "--stage", stage, *SGD_STAGES)
    assert losses(run, "small") == losses(uninterrupted / "run", "small")
    small, grown = (checkpoints.raw(checkpoints.locate(run / stage)) for stage in ("small", "grown"))
    assert small.optimizer() == grown.optimizer() == SGD(momentum=0.8, weight_decay=0.1)
    assert (small.step, small.steps, grown.step, grown.steps) == (STEPS, {}, STEPS, {})
    assert set(grown.slots) == {"momentum_buffer"} and set(grown.slots["momentum_buffer"]) == set(grown.tensors)
    momentum = grown.slots["momentum_buffer"]["vit.layers.0.mlp.fc1.weight"].tensor()
    assert momentum.shape == (160, 40) and momentum.abs().max() > 0 and torch.isfinite(momentum).all()
    assert len([record for record in records(run, "large") if "loss" in record]) == STEPS // 2
    facts = json.loads((run / "grown" / "stage.json").read_text())
    assert facts["optimizer_state"] == "grow"


def test_adamw_goes_on_from_what_sgd_has_trained(uninterrupted, tmp_path):
    """The expansion starts AdamW afresh: its count begins at 0, and its groups are AdamW's own."""
    path, run = copied(uninterrupted, tmp_path, "small"), tmp_path / "run"
    for stage in ("grown", "large"):
        lemon_here("train", path, "--stage", stage, *(each for each in SGD_STAGES if "small" in each))
    large = checkpoints.raw(checkpoints.locate(run / "large"))
    assert large.optimizer() == AdamW() and set(large.steps.values()) == {STEPS / 2}
    before, after = (losses(run, stage) for stage in ("small", "large"))
    assert after[0][2] == pytest.approx(before[-1][2], abs=1e-4)
