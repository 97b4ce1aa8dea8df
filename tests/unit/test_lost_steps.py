"""No work is forgotten: what a start has done behind the checkpoint from which the next one goes on stays accounted."""

import os
import shutil

import pytest

from pipeline.records.stage_records import LedgerEntry
from pipeline.report import build
from pipeline.training import lost_steps
from tests.helpers.invented_runs import LARGE, LARGE_LOSS, simple_run, spend, train


def killed(folder, finished: int):
    """A stage of 10 FLOPs a step, 2 more for recomputation, killed behind step 20 and before that was recorded."""
    stage = train(folder, "large", LARGE, LARGE_LOSS, recompute=2, finished=False, steps=40)
    stage.counter.write(finished)
    return stage


def lost(stage) -> list[tuple[int, int, int]]:
    """(FLOPs, samples, tokens) of what was lost, of each kind."""
    return [(entry.flops, entry.samples, entry.tokens) for entry in stage.ledger.accounted() if entry.kind == "lost"]


def test_steps_that_were_finished_and_not_recorded_count(tmp_path):
    stage = killed(tmp_path, 23)
    lost_steps.account_for(stage, stage.facts, 18)
    assert lost(stage) == [(10, 4, 32), (2, 0, 0), (10, 4, 32), (2, 0, 0), (7, 16, 128), (30, 12, 96), (6, 0, 0)]
    assert {entry.step for entry in stage.ledger.accounted() if entry.kind == "lost"} == {19}
    assert stage.counter.read() == 18


@pytest.mark.parametrize("finished", [0, 7, 20])
def test_a_counter_that_tells_nothing_new_adds_nothing(tmp_path, finished):
    """Of a folder that was copied without it, or after the machine went down."""
    stage = killed(tmp_path, finished)
    before = list(stage.ledger)
    lost_steps.account_for(stage, stage.facts, 20)
    assert list(stage.ledger) == before


@pytest.mark.parametrize("call", range(1, 4))
def test_whenever_it_is_killed_itself_nothing_counts_twice(tmp_path, monkeypatch, call):
    """Ended before its first write, its second, …, and called again."""
    stage, whole = killed(tmp_path / "cut", 23), killed(tmp_path / "whole", 23)
    lost_steps.account_for(whole, whole.facts, 18)
    left = iter(range(call))

    def unless_it_is_over(write):
        def written(*arguments):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return write(*arguments)

        return written

    with monkeypatch.context() as patch:
        patch.setattr(stage.ledger, "append", unless_it_is_over(stage.ledger.append))
        patch.setattr(stage.counter, "write", unless_it_is_over(stage.counter.write))
        try:
            lost_steps.account_for(stage, stage.facts, 18)
        except KeyboardInterrupt:
            assert call < 3
    lost_steps.account_for(stage, stage.facts, 18)
    assert list(stage.ledger) == list(whole.ledger)


def test_the_report_counts_it_and_no_saving_does(tmp_path):
    plain, run = simple_run(tmp_path / "plain"), simple_run(tmp_path / "run")
    shutil.rmtree(run / "large")
    stage = train(run, "large", LARGE, {0: 5.0, 10: 4.5, 13: 4.2}, origin="grown", flops=8, recompute=2, finished=False)
    stage.ledger.restart(10)
    for step in range(11, 21):
        spend(stage, step, "train", 8, 4, 32)
        spend(stage, step, "recompute", 2)
    spend(stage, 20, "evaluate", 7, 16, 128)
    assert stage.ledger.accounted()[-1] == LedgerEntry(step=20, kind="evaluate", flops=7, samples=16, tokens=128)
    before, after = (build([folder]).runs[0] for folder in (plain, run))
    assert after.ledger.by_kind["lost"].flops == 3 * (8 + 2) + 7
    assert after.ledger.training.flops == before.ledger.training.flops
    assert after.ledger.everything.flops == before.ledger.everything.flops + 37


def test_the_counter_is_whole_at_any_moment_and_goes_with_the_stage(tmp_path):
    stage = killed(tmp_path, 0)
    stage.counter.write(12345)
    for step in (7, 99999, 3):
        stage.counter.write(step)
        assert stage.counter.read() == step and os.path.getsize(stage.counter.path) == 20
    stage.counter.remove()
    assert not stage.counter.path.exists() and stage.counter.read() == 0
    stage.counter.path.write_text("damaged")
    assert stage.counter.read() == 0
