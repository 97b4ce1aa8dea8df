"""SGD with momentum through a whole run: trained, killed, resumed, grown with its momentum, trained on."""

import json
import signal

import pytest
import torch

from pipeline import checkpoints
from pipeline.optim.optimizers import SGD
from tests.helpers.cli import run_lemon, start_lemon
from tests.helpers.runs import STEPS, losses, records, tiny_run
from tests.helpers.waiting import wait_for

SGD_STAGES = [
    *(f"stages.{stage}.optimizer={{kind: sgd, momentum: 0.8, weight_decay: 0.1}}" for stage in ("small", "large")),
    *(f"stages.{stage}.schedule.peak=0.05" for stage in ("small", "large")),
    "stages.grown.optimizer_state=grow",
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sgd")
    done = run_lemon("train", tiny_run(folder), "--stage", "small", *SGD_STAGES)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "run"


def test_it_resumes_and_its_momentum_grows(uninterrupted, tmp_path):
    path, run = tiny_run(tmp_path), tmp_path / "run"
    process = start_lemon("train", path, "--stage", "small", *SGD_STAGES)
    wait_for(lambda: any(record["step"] >= 6 for record in records(run, "small")))
    process.send_signal(signal.SIGKILL)
    process.wait()
    for stage in ("small", "grown", "large"):
        done = run_lemon("train", path, "--stage", stage, *SGD_STAGES)
        assert done.returncode == 0, done.stderr[-4000:]
    assert losses(run, "small") == losses(uninterrupted, "small")
    small, grown = (checkpoints.raw(checkpoints.locate(run / stage)) for stage in ("small", "grown"))
    assert small.optimizer() == grown.optimizer() == SGD(momentum=0.8, weight_decay=0.1)
    assert (small.step, small.steps, grown.step, grown.steps) == (STEPS, {}, STEPS, {})
    assert set(grown.slots) == {"momentum_buffer"} and set(grown.slots["momentum_buffer"]) == set(grown.tensors)
    momentum = grown.slots["momentum_buffer"]["vit.layers.0.mlp.fc1.weight"].tensor()
    assert momentum.shape == (160, 40) and momentum.abs().max() > 0 and torch.isfinite(momentum).all()
    assert len([record for record in records(run, "large") if "loss" in record]) == STEPS // 2
    facts = json.loads((run / "grown" / "stage.json").read_text())
    assert facts["optimizer_state"] == "grow"
