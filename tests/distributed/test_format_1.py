"""A run that version 0.1.0 began goes on: its facts, records, fingerprint and checkpoints of format 1 are all read."""

import json
import shutil

import pytest

from tests.helpers.cli import ROOT, lemon
from tests.helpers.runs import entries, ledger, records

FIXTURE = ROOT / "tests" / "fixtures" / "format-1"


@pytest.mark.slow  # part of .ci/run
def test_an_interrupted_run_of_format_1_ends(tmp_path, monkeypatch, capfd):
    """`large` was killed behind its checkpoint of step 20. What was recorded until then stays to the digit, what was
    recorded behind it is trained again: step 21 starts from the same weights, moments and rate, so its loss is that
    which the older version recorded, but for the order of sums on another machine."""
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    run = tmp_path / "run"
    before = records(run, "large")
    monkeypatch.chdir(tmp_path)
    code, said, error = lemon(capfd, "run", "tiny.yaml", "folder=run")
    assert code == 0, error
    assert said.count("finished already, skipped") == 2
    assert "large: resumed at step 20 of 200" in (run / "large" / "log.txt").read_text()
    after = records(run, "large")
    assert [record["step"] for record in after if "loss" in record] == list(range(1, 201))
    recorded = [record for record in before if record["step"] <= 20]
    kept = [
        {key: value for key, value in record.items() if key in old}
        for record, old in zip(after, recorded, strict=False)
    ]
    assert kept == recorded
    old, new = ({r["step"]: r["loss"] for r in part if "loss" in r} for part in (before, after))
    assert all(abs(new[step] - old[step]) < 1e-5 for step in (21, 22, 23))
    facts = json.loads((run / "large" / "stage.json").read_text())
    assert (facts["format"], facts["status"]) == (2, "finished")
    everything, kept = entries(run, "large"), ledger(run, "large")
    assert sum(entry["flops"] for entry in kept if entry["kind"] == "train") == 200 * 917_376
    assert sum(entry["flops"] for entry in everything if entry["kind"] == "train") == 203 * 917_376, "3 were done again"
    assert {record["format"] for record in after} == {2}
    assert {entry.get("format") for entry in everything} == {None, 2}, "no line of the ledger is written again"
    assert (run / "report.html").exists()
