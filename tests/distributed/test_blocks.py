"""A text that is read in longer blocks by the second stage than by the first."""

import json
import shutil

import pytest

from tests.helpers.cli import lemon_here
from tests.helpers.runs import ledger, losses
from tests.helpers.text_run import LONG, text_run


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A run in blocks of 16 and, behind that, of 48 tokens."""
    folder = tmp_path_factory.mktemp("blocks")
    path = text_run(folder)
    for stage in ("short", "long"):
        lemon_here("train", path, "--stage", stage)
    return folder / "run"


def test_each_stage_reads_and_pays_in_its_blocks(chain):
    facts = {stage: json.loads((chain / stage / "stage.json").read_text()) for stage in ("short", "long")}
    prepared = json.loads((chain / "data" / "data.json").read_text())["facts"]
    long_blocks = prepared["training"] * 14 // (LONG - 2)
    assert facts["long"]["first_sample"] == long_blocks, "the next epoch"
    assert (facts["short"]["settings"]["block"], facts["long"]["settings"]["block"]) == (None, LONG)
    assert facts["long"]["tokens_per_step"] == 3 * facts["short"]["tokens_per_step"]
    for stage in facts:
        trained = [entry for entry in ledger(chain, stage) if entry["kind"] == "train"]
        assert {entry["flops"] for entry in trained} == {facts[stage]["flops_per_step"]["train"]}
    samples = json.loads((newest(chain, "long") / "manifest.json").read_text())["provenance"]["samples"]
    assert samples == {"next": long_blocks + 6 * 8, "size": long_blocks, "seed": 0, "block": LONG}


def newest(run, stage):
    return max((run / stage / "checkpoints").iterdir())


def test_it_goes_on_as_if_it_had_not_been_killed(chain, tmp_path):
    shutil.copytree(chain, tmp_path / "run")
    begun = tmp_path / "run" / "long"
    shutil.rmtree(newest(tmp_path / "run", "long"))
    facts = json.loads((begun / "stage.json").read_text())
    (begun / "stage.json").write_text(json.dumps({**facts, "status": "running"}))
    path = text_run(tmp_path)
    path.write_text(path.read_text().replace(str(tmp_path / "words.txt"), str(chain.parent / "words.txt")))
    lemon_here("train", path, "--stage", "long")
    assert losses(tmp_path / "run", "long") == losses(chain, "long")
    files = [
        json.loads((newest(run, "long") / "manifest.json").read_text())["files"] for run in (tmp_path / "run", chain)
    ]
    assert files[0] == files[1]
