"""How many steps a begun stage takes when the config asks for others."""

from pathlib import Path

import pytest

from pipeline import config, data, models
from pipeline.checkpoints import publish
from pipeline.data import data_of
from pipeline.durations import Pace
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder
from pipeline.training.fingerprint import Fingerprint, require_same
from pipeline.training.length import goes_on, rates, reopen
from tests.helpers.invented_runs import LARGE, SMALL, expand, train
from tests.helpers.runs import STEPS, tiny_run

PACE = Pace(samples=16, tokens=16, flops=1000, samples_per_epoch=160)
LOSSES = {0: 5.0, STEPS: 4.0}


def begun(folder: Path, *asked: str, finished: bool = True, losses: dict[int, float] = LOSSES) -> config.Config:
    """A run whose stage `small` was begun to train 24 steps, and whose config asks for something else by now."""
    path = tiny_run(folder)
    before = config.load(path)
    schedule = dict(vars(before.training_stage("small").schedule.resolve(PACE)))
    recorded = {"fingerprint": Fingerprint.of(before, before.stage("small")).settings(), "schedule": schedule}
    stage = train(before.path, "small", SMALL, losses, steps=STEPS, finished=finished, **recorded)
    checkpoint = stage.checkpoints / f"step-{max(losses):07d}"
    facts = data.prepare(before.data, before.seed, before.path / "data").facts
    staged = publish.staging(checkpoint)
    (staged / "config.json").write_text(models.config_text(models.trained(before.models["small"], facts)))
    publish.publish(staged, checkpoint, {"kind": "train", "step": max(losses)})
    return config.load(path, [f"stages.small.schedule.{each}" for each in asked])


def resolved(run: config.Config):
    stage = run.training_stage("small")
    require_same(run, stage)
    return rates(run, stage, PACE, data_of(run, stage))


def test_a_share_of_the_horizon_is_a_length(tmp_path):
    run = config.load(begun(tmp_path).path.parent / "tiny.yaml", ["stages.small.grow_at=50 %"])
    with pytest.raises(UserError, match=r"steps up to grow_at 50 %: they are 12, and the stage has trained 24"):
        resolved(run)


def test_more_steps_have_an_ended_stage_go_on(tmp_path):
    run = begun(tmp_path, "steps=3 epochs")
    stage = run.training_stage("small")
    assert (resolved(run).steps, resolved(run).horizon) == (30, STEPS)
    assert goes_on(run, stage)
    reopen(run, stage)
    assert not StageFolder(run.path / "small").finished


def test_the_same_length_in_other_words_does_not(tmp_path):
    run = begun(tmp_path, f"steps={STEPS * 16} samples")
    assert not goes_on(run, run.training_stage("small"))


def test_an_ended_stage_does_not_become_shorter(tmp_path):
    with pytest.raises(UserError, match=r"they are 20, and the stage has trained 24; ask for at least as many"):
        resolved(begun(tmp_path, "steps=20 steps"))


def test_a_stage_on_its_way_becomes_no_shorter_than_it_is(tmp_path):
    run = begun(tmp_path, "steps=10 steps", finished=False, losses={0: 5.0, 10: 4.5})
    assert resolved(run).steps == 10
    shorter = config.load(tmp_path / "tiny.yaml", ["stages.small.schedule.steps=9 steps"])
    with pytest.raises(UserError, match=r"stages\.small\.schedule.*: they are 9, and the stage has trained 10; ask"):
        resolved(shorter)


def test_a_record_from_before_there_were_lengths_keeps_its_own(tmp_path):
    run = begun(tmp_path)
    stage = StageFolder(run.path / "small")
    former = {key: value for key, value in stage.facts.schedule.items() if key != "horizon"}
    fingerprint = stage.facts.fingerprint
    del fingerprint["stage"]["schedule"]["steps"]
    stage.finish(stage.facts.model_copy(update={"schedule": {**former, "steps": 20}, "steps": 20}))
    assert (resolved(run).steps, resolved(run).horizon) == (20, 20)
    assert not goes_on(run, run.training_stage("small"))


def test_it_does_not_go_on_when_others_began_from_its_end(tmp_path):
    run = begun(tmp_path, "steps=40 steps")
    grown = Fingerprint.of(run, run.stage("grown")).settings()
    expand(run.path, "grown", "small", LARGE, fingerprint=grown)
    with pytest.raises(UserError, match=r"small: ended at step 24, and the config asks for more, but grown began from"):
        reopen(run, run.training_stage("small"))


def test_the_schedule_itself_may_not_change(tmp_path):
    run = begun(tmp_path, "steps=40 steps", "horizon=40 steps")
    with pytest.raises(UserError, match=r"stage\.schedule\.horizon was 24 steps, is now 40 steps; take") as caught:
        require_same(run, run.training_stage("small"))
    assert "schedule.steps" not in str(caught.value)
