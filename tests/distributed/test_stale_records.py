"""A shared file system may show other nodes records as they were a moment before: what rank 0 reads counts."""

import os
from dataclasses import replace
from pathlib import Path

from pipeline.training import loop
from pipeline.training.stage import TrainingPlan
from tests.helpers.cli import lemon_here
from tests.helpers.runs import copied, losses

plan_training = loop.plan_training


def read_late_on_rank_1(*arguments: object) -> TrainingPlan:
    """Its data position is that of a start that is not the newest."""
    plan = plan_training(*arguments)
    return plan if os.environ["RANK"] == "0" else replace(plan, first_sample=plan.first_sample + 8)


def trained(folder: Path) -> list[tuple]:
    return [row for row in losses(folder / "run", "small") if row[1] is not None]


def test_all_ranks_go_by_what_rank_0_has_read(finished, tmp_path, monkeypatch):
    """Workers are forks, which take the patch over."""
    monkeypatch.setattr(loop, "plan_training", read_late_on_rank_1)
    lemon_here("train", copied(finished, tmp_path), "--stage", "small", "stages.small.schedule.steps=4 steps")
    ours, theirs = (trained(where) for where in (tmp_path, finished))
    assert ours and ours == theirs[: len(ours)]


def without_a_target_on_rank_1(*arguments: object) -> TrainingPlan:
    plan = plan_training(*arguments)
    return plan if os.environ["RANK"] == "0" else replace(plan, target=None)


def test_all_ranks_end_at_the_target_that_rank_0_has_read(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "plan_training", without_a_target_on_rank_1)
    at_once = "stages.small.stop={eval_loss: 100}"
    lemon_here("train", copied(finished, tmp_path), "--stage", "small", at_once, "hang.first=60 seconds")
    assert losses(tmp_path / "run", "small")[-1][0] == 0
