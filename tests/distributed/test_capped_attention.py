"""A model whose attention scores are capped trains, grows with its optimizer's state and trains on, by plain attention
alone."""

import json
from pathlib import Path

import pytest

from tests.helpers.cli import lemon
from tests.helpers.text_run import text_run

SIZES = {"family": "gemma2", "layers": 2, "hidden": 24, "heads": 3, "head_dim": 8, "mlp": 40, "eps": 1e-6}
REFUSAL = "attention sdpa: its model (gemma2) is computed by plain attention alone; use auto or eager"
LARGER = {**SIZES, "layers": 4, "hidden": 40, "heads": 5, "mlp": 70}


def run(folder: Path, attention: str, **expansion: object) -> Path:
    train = {"kind": "train", "batch": 8, "evaluate_every": "3 steps", "attention": attention}
    train["schedule"] = {"peak": 1e-3, "warmup": "1 step", "horizon": "6 steps"}
    stages = [
        {**train, "name": "begun", "model": "small"},
        {"kind": "expand", "name": "grown", "source": "begun", "model": "large", "optimizer_state": "grow"} | expansion,
        {**train, "name": "after", "model": "large", "start": "grown"},
    ]
    return text_run(folder, models={"small": SIZES, "large": LARGER}, stages=stages)


def test_it_trains_and_grows_by_plain_attention(tmp_path, capfd):
    code, said, error = lemon(capfd, "run", run(tmp_path, "auto"))
    assert code == 0 and "a layer takes" not in said, error
    for stage in ("begun", "after"):
        facts = json.loads((tmp_path / "run" / stage / "stage.json").read_text())
        assert facts["settings"]["attention"] == facts["fingerprint"]["stage"]["attention"] == "eager"
    ends = [
        [json.loads(line) for line in (tmp_path / "run" / stage / "metrics.jsonl").read_text().splitlines()]
        for stage in ("begun", "after")
    ]
    last, first = ([line["eval_loss"] for line in lines if "eval_loss" in line] for lines in ends)
    assert abs(last[-1] - first[0]) < 1e-4 * last[-1]


@pytest.mark.parametrize("command", [["train", "--stage", "begun"], ["run"], ["run", "--dry-run"]])
def test_fused_kernels_are_refused_before_anything_begins(tmp_path, capfd, command):
    code, _, error = lemon(capfd, command[0], run(tmp_path, "sdpa"), *command[1:])
    assert code == 2 and all(f"stages.{stage}: {REFUSAL}" in error for stage in ("begun", "after")), error
    assert not (tmp_path / "run" / "begun").exists()


def test_fused_kernels_of_a_fit_are_refused_too(tmp_path, capfd):
    learned = {"method": "ligo", "fit": {"attention": "sdpa"}, "optimizer_state": "reset"}
    code, _, error = lemon(capfd, "run", run(tmp_path, "auto", **learned), "--dry-run")
    assert code == 2 and f"stages.grown-fit: {REFUSAL}" in error and "stages.begun" not in error
    code, _, error = lemon(capfd, "run", run(tmp_path, "auto", **{**learned, "fit": {}}), "--dry-run")
    assert code == 0, error
