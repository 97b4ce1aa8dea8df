"""Muon through a whole run: trained, interrupted, resumed, resharded, grown with its momentum, trained on, accounted
for."""

import json
from pathlib import Path

import pytest

from pipeline import checkpoints, models
from pipeline.optim.optimizers import Muon
from tests.helpers.cli import lemon, lemon_here
from tests.helpers.rotation import rotated
from tests.helpers.runs import STEPS, copied, interrupted, ledger, losses, records

MUON = "{kind: muon, weight_decay: 0.1, rates: {hidden: 10, head: 2}}"
STAGES = [*(f"stages.{stage}.optimizer={MUON}" for stage in ("small", "large")), "stages.grown.optimizer_state=grow"]


@pytest.fixture(scope="module")
def uninterrupted(finished, tmp_path_factory) -> Path:
    """The small model, trained."""
    folder = tmp_path_factory.mktemp("muon")
    lemon_here("train", copied(finished, folder), "--stage", "small", *STAGES)
    return folder


def test_the_products_of_its_updates_are_charged_as_the_dry_run_says(uninterrupted, capsys):
    code, out, _ = lemon(capsys, "run", uninterrupted / "tiny.yaml", "--dry-run", "--json", *STAGES)
    stages = {stage["name"]: stage for stage in json.loads(out)["stages"]}
    spent = ledger(uninterrupted / "run", "small")
    by_kind = {kind: sum(e["flops"] for e in spent if e["kind"] == kind) for kind in {e["kind"] for e in spent}}
    facts = json.loads((uninterrupted / "run" / "small" / "stage.json").read_text())
    assert by_kind["optimizer"] == STEPS * facts["flops_per_step"]["optimizer"] > 0
    assert code == 0 and stages["small"]["flops"]["total"] == sum(by_kind.values())
    disk = sum(f.stat().st_size for f in checkpoints.locate(uninterrupted / "run" / "small").rglob("*optim_states.pt"))
    numbers = stages["small"]["parameters"] * 4
    assert 2 * numbers < disk < 3 * numbers, "weights, and of hidden matrices one moment"


def test_it_resumes_and_its_momentum_grows(uninterrupted, tmp_path):
    path, run = interrupted(uninterrupted, tmp_path, "small", 20), tmp_path / "run"
    for stage in ("small", "grown", "large"):
        lemon_here("train", path, "--stage", stage, *STAGES)
    assert losses(run, "small") == losses(uninterrupted / "run", "small")
    small, grown, large = (checkpoints.read(checkpoints.locate(run / s)) for s in ("small", "grown", "large"))
    assert small[0].optimizer() == grown[0].optimizer() == Muon(weight_decay=0.1)
    assert (small[0].step, grown[0].step, large[0].step) == (STEPS, STEPS, STEPS * 3 // 2)
    for state, config in (grown, large):
        hidden = {row.name for row in models.architecture_of(config).rows() if row.kind == "hidden"}
        assert set(state.slots["momentum_buffer"]) == hidden and set(state.steps) == set(state.tensors) - hidden
    assert set(large[0].steps.values()) == {STEPS * 1.5}
    last, first = ([r["eval_loss"] for r in records(run, stage) if "eval_loss" in r] for stage in ("small", "large"))
    assert first[0] == pytest.approx(last[-1], abs=1e-6) and first[-1] < first[0]


@rotated(one_in=2, of="how")
@pytest.mark.parametrize("how", ["zero_stage=3", "zero_stage=0"])
def test_it_goes_on_in_another_stage_of_zero(uninterrupted, tmp_path, how):
    """1e-3: as in test_reshard_muon.py; what is resharded is so to the bit there."""
    path, run = interrupted(uninterrupted, tmp_path, "small", 20), tmp_path / "run"
    lemon_here("train", path, "--stage", "small", *STAGES, f"stages.small.{how}")
    ours, theirs = ([each[1] or each[2] for each in losses(f / "run", "small")] for f in (tmp_path, uninterrupted))
    assert ours == pytest.approx(theirs, abs=1e-3)
    facts = json.loads((run / "small" / "stage.json").read_text())
    assert facts["settings"]["optimizer"]["rates"] == {"hidden": 10, "embeddings": 1, "head": 2, "vectors": 1}
