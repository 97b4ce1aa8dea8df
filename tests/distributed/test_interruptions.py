"""Runs that are stopped: by a worker's death, by Ctrl-C, while another wants to start. At any moment, by whatever may
happen: test_soak.py."""

import json
import os
import signal

from tests.helpers import cli
from tests.helpers.cli import lemon_here, start_lemon
from tests.helpers.processes import Ended, workers_of
from tests.helpers.runs import copied, entries, interrupted, ledger, losses, records, steps_in_all
from tests.helpers.waiting import wait_for

LONG = "stages.small.schedule.horizon=5000 steps"
"""Longer than any of these tests looks, so that none races with the end of the training."""


def same_as(run, finished, *stages):
    for stage in stages:
        assert losses(run, stage) == losses(finished / "run", stage), stage
        assert ledger(run, stage) == ledger(finished / "run", stage), stage


def test_steps_that_are_done_again_stay_in_the_ledger(finished, tmp_path):
    """Killed in step 24, with a checkpoint of step 20 and nothing recorded behind it."""
    path, run = interrupted(finished, tmp_path, "small", 20), tmp_path / "run"
    before = (run / "small" / "ledger.jsonl").read_bytes()
    (run / "small" / "last-step").write_text(f"{23:020d}")
    lemon_here("train", path, "--stage", "small")
    same_as(run, finished, "small")
    assert steps_in_all(run, "small") == steps_in_all(finished / "run", "small") + 3
    assert (run / "small" / "ledger.jsonl").read_bytes().startswith(before)
    spent = [sum(entry["flops"] for entry in entries(where, "small")) for where in (run, finished / "run")]
    newest = max((run / "small" / "checkpoints").iterdir())
    assert json.loads((newest / "manifest.json").read_text())["provenance"]["flops"] == spent[0] > spent[1]


def test_while_a_worker_lives_no_other_starts_and_its_death_ends_the_job(finished, tmp_path, capsys):
    path = copied(finished, tmp_path)
    process = start_lemon(tmp_path / "said", "train", path, "--stage", "small", LONG)
    wait_for(lambda: records(tmp_path / "run", "small"))
    code, _, error = cli.lemon(capsys, "run", path, LONG)
    assert code == 2 and "another process is at work on this run" in error
    os.kill(wait_for(lambda: workers_of(process.pid))[0], signal.SIGKILL)
    ended = process.end()
    assert ended.code == 75 and "died (SIGKILL: " in ended.said and "Traceback" not in ended.said
    lemon_here("prepare", path, LONG)


def test_ctrl_c_stops_without_a_traceback(finished, tmp_path):
    path = copied(finished, tmp_path)
    process = start_lemon(tmp_path / "said", "train", path, "--stage", "small", LONG, "processes=1")
    wait_for(lambda: records(tmp_path / "run", "small"))
    os.kill(process.pid, signal.SIGINT)
    assert process.end() == Ended(130, "lemon: stopped; run the command again to resume\n")
