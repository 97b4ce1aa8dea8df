"""Runs that are stopped at any moment: by SIGKILL, by a worker's death, by Ctrl-C, while another wants to start."""

import json
import os
import signal
from collections import Counter

import pytest

from pipeline.cli import main
from pipeline.report import build
from tests.helpers import cli
from tests.helpers.cli import environment_kept, lemon_here, start_lemon
from tests.helpers.processes import Ended, kill_at, workers_of
from tests.helpers.rotation import rotated
from tests.helpers.runs import (
    BATCH,
    copied,
    entries,
    interrupted,
    ledger,
    losses,
    records,
    steps_in_all,
    steps_to_redo,
    tiny_run,
)
from tests.helpers.waiting import wait_for

LONG = "stages.small.schedule.horizon=5000 steps"
"""Longer than any of these tests looks, so that none races with the end of the training."""


def same_as(run, finished, *stages):
    for stage in stages:
        assert losses(run, stage) == losses(finished / "run", stage), stage
        assert ledger(run, stage) == ledger(finished / "run", stage), stage


def one_stage(finished, folder):
    """SIGKILL while starting, before the first checkpoint, right after one."""
    path, run = tiny_run(folder), folder / "run"
    moments = [
        run.exists,
        lambda: any(record["step"] >= 3 for record in records(run, "small")),
        lambda: any(record["step"] >= 11 for record in records(run, "small")),
    ]
    return ["train", str(path), "--stage", "small"], moments, ["small"]


def whole_chain(finished, folder):
    """SIGKILL as the expansion ends, in the expanded stage, in the stage behind it."""
    path, run = copied(finished, folder, "small"), folder / "run"
    moments = [
        lambda: (run / "grown" / "stage.json").exists(),
        lambda: any(record["step"] >= 7 for record in records(run, "large")),
        lambda: any(record["step"] >= 16 for record in records(run, "scratch")),
    ]
    return ["run", str(path)], moments, ["small", "grown", "large", "scratch"]


def state_of(run, stage):
    """Steps to redo, and the ledger, which tells whether a start that was killed has come to the stage."""
    book = run / stage / "ledger.jsonl"
    return steps_to_redo(run, stage), book.read_bytes() if book.exists() else b""


SCOPES = {"stage": one_stage, "chain": whole_chain}


@rotated(one_in=4, of=("scope", "victim"))
@pytest.mark.parametrize("victim", ["parent", "worker"])
@pytest.mark.parametrize("scope", SCOPES)
def test_killed_anywhere_it_ends_with_the_same_losses(finished, tmp_path, scope, victim):
    command, moments, stages = SCOPES[scope](finished, tmp_path)
    trained, redone, seen = [stage for stage in stages if stage != "grown"], Counter[str](), {}
    with environment_kept():
        for moment in moments:
            kill_at(moment, lambda: main(command), victim, tmp_path / "run")
            states = {stage: state_of(tmp_path / "run", stage) for stage in trained}
            redone.update({stage: state[0] for stage, state in states.items() if state != seen.get(stage)})
            seen = states
    lemon_here(*command)
    same_as(tmp_path / "run", finished, *stages)
    more = {s: steps_in_all(tmp_path / "run", s) - steps_in_all(finished / "run", s) for s in trained}
    assert more == redone
    book = build([tmp_path / "run"]).runs[0].ledger if scope == "chain" else None
    assert book is None or not redone.total() or book.by_kind["lost"].samples >= redone.total() * BATCH


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
