"""A run folder that version 0.1.0 made: `small` and `grown` finished, `large` interrupted at step 20 of 200.

It was made by `lemon run tiny.yaml folder=run`, so the paths in it are relative to the folder that holds `run`.
"""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.accounting.lineage import lineage
from pipeline.accounting.recorded_runs import RecordReader
from pipeline.accounting.totals import Amounts
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import ExpandFacts, TrainFacts
from tests.helpers.cli import ROOT, lemon

FIXTURE = ROOT / "tests" / "fixtures" / "format-1"
STAGES = ("small", "grown", "large")


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A copy of the folder, seen from where it was made."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run")


def raw(run: Path, stage: str) -> dict:
    return json.loads((run / stage / "stage.json").read_text())


def test_nothing_in_it_names_a_format(run):
    """What these tests are about; an expansion kept its layout under that key."""
    assert [raw(run, stage).get("format") for stage in STAGES] == [
        None,
        {"layout": "zero", "zero_stage": 1, "world_size": 2, "bf16": False},
        None,
    ]


def test_facts_are_upgraded_while_they_are_read(run):
    small, grown, large = (StageFolder(run / stage).facts for stage in STAGES)
    assert isinstance(small, TrainFacts) and (small.format, small.status, small.steps) == (2, "finished", 6)
    assert (
        small.settings.micro_batch == 4
        and small.flops_per_step.train == 223_744
        and [each.step for each in small.starts] == [0]
    )
    assert isinstance(grown, ExpandFacts) and (grown.method, grown.optimizer_state) == ("lemon", "reset")
    assert grown.method_options == {"depth": "zero", "placement": "even", "noise": 1.0}
    assert grown.layout == raw(run, "grown")["format"] and grown.verification == raw(run, "grown")["verification"]
    assert isinstance(large, TrainFacts) and (large.status, large.start) == (
        "running",
        "run/grown/checkpoints/step-0000000",
    )
    assert all(facts.fingerprint == raw(run, facts.name)["fingerprint"] for facts in (small, grown, large))


@pytest.mark.parametrize("stage", STAGES)
def test_facts_of_format_2_are_what_is_written(run, stage):
    folder = StageFolder(run / stage)
    before = folder.facts
    folder.begin(before)
    assert raw(run, stage)["format"] == 2 and raw(run, stage)["status"] == "running"
    assert folder.facts == before.model_copy(update={"status": "running"})


def test_a_newer_stage_is_refused_in_a_sentence(run):
    file = run / "small" / "stage.json"
    file.write_text(json.dumps({**raw(run, "small"), "format": 3}))
    with pytest.raises(
        UserError, match=r"run/small/stage.json: has format 3, and this version of lemon reads .* newer"
    ):
        lineage(run / "grown", RecordReader())


def test_incomplete_facts_are_named(run):
    content = raw(run, "small")
    del content["settings"]["batch"]
    (run / "small" / "stage.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^run/small/stage.json: not the facts of a stage .*settings.batch: Field req"):
        _ = StageFolder(run / "small").facts


def test_a_key_that_this_version_does_not_know_is_kept(run):
    folder = StageFolder(run / "small")
    (run / "small" / "stage.json").write_text(json.dumps({**raw(run, "small"), "hostname": "one"}))
    folder.finish(folder.facts)
    assert raw(run, "small")["hostname"] == "one"


def test_the_report_reads_it(run, capsys):
    code, out, err = lemon(capsys, "report", run)
    assert code == 0 and "'large'" in out, err
    (content,) = json.loads((run / "report.json").read_text())["runs"]
    assert content["unfinished"] == ["stage 'large' at step 23 of 200"]
    large = content["stages"][2]["evaluations"]
    assert [(point["step"], point["flops"]) for point in large] == [(0, 0), (20, 20 * 917_376)]
    assert content["ledger"]["by_kind"]["train"] == {"flops": 6 * 223_744 + 23 * 917_376, "samples": 232, "tokens": 232}
    assert content["ledger"]["by_kind"]["evaluate"]["flops"] == 3 * 154_624 + 2 * 619_776
    (expansion,) = content["continuity"]
    assert expansion["source_loss"] == 2.2989507019519806 and expansion["lossless"]
    seconds = sum(json.loads(line).get("seconds", 0) for line in (run / "small" / "metrics.jsonl").open())
    assert content["speed"][0]["wall_seconds"] == pytest.approx(seconds)


def test_a_lineage_walks_it(run):
    large, grown, small = lineage(run / "large", RecordReader())
    assert [(a.name, a.kind, a.last_step) for a in (large, grown, small)] == [
        ("large", "train", 23),
        ("grown", "expand", 0),
        ("small", "train", 6),
    ]
    assert (grown.method, grown.lossless) == ("lemon", True)
    assert grown.spent == {"verify": Amounts(flops=422_944, samples=2), "grow": Amounts(flops=8396)}
    assert small.training_flops == 6 * 223_744


@pytest.mark.parametrize("stage", STAGES)
def test_its_checkpoints_are_whole(run, capsys, stage):
    code, out, err = lemon(capsys, "check", run / stage)
    assert code == 0, err
    code, out, err = lemon(capsys, "inspect", run / stage, "--json")
    assert code == 0 and json.loads(out), err
    assert json.loads((next((run / stage).glob("checkpoints/*")) / "manifest.json").read_text())["format"] == 1
