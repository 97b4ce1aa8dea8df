"""The target at which a training stage ends: what it may be, what reaches it, and whether an ended stage goes on."""

import shutil
from pathlib import Path

import pytest

from pipeline import config
from pipeline.accounting.recorded_runs import RecordReader
from pipeline.checkpoints import publish
from pipeline.errors import UserError
from pipeline.report import build
from pipeline.training.length import goes_on, has_ended, reopen, require_open_end
from pipeline.training.start import origin
from pipeline.training.target import Target, reached_at, target_of
from tests.helpers.invented_runs import LARGE, SMALL, expand, simple_run, train
from tests.helpers.runs import tiny_run

LOSSES = {0: 5.0, 10: 4.0, 20: 3.0}
MET = {"step": 20, "measure": "eval_loss", "target": 3.25, "value": 3.0, "flops": 200}
"""Of a stage of 40 steps at 10 FLOPs each."""


def loaded(folder: Path, *overrides: str) -> config.Config:
    return config.load(tiny_run(folder), overrides)


def ended(folder: Path, *overrides: str) -> config.Config:
    """A run whose stage `small` has ended at a loss of 3.0, before its schedule did."""
    run = loaded(folder, *overrides)
    stage = train(run.path, "small", SMALL, LOSSES, steps=40, reached=MET)
    checkpoint = stage.checkpoints / "step-0000020"
    publish.publish(publish.staging(checkpoint), checkpoint, {"kind": "train", "step": 20})
    return run


BAD = {
    "stop={}": "stages.large.stop: needs one of eval_loss and top1, such as {eval_loss: 2.5}",
    "stop={eval_loss: 2.5, top1: 0.5}": "stages.large.stop: needs one of eval_loss and top1",
    "stop={eval_loss: 0}": "stages.large.stop.eval_loss: must be more than 0 or text (got 0",
    "stop={eval_loss: .nan}": "stages.large.stop.eval_loss: must be a finite number or text (got nan",
    "stop={top1: 80}": "stages.large.stop.top1: must be at most 1 or text (got 80",
    "stop={loss: 2.5}": "stages.large.stop.loss: unknown key; did you mean 'eval_loss'?",
    "stop={eval_loss: smal}": (
        "stages.large.stop.eval_loss: 'smal' is no number and no earlier training stage; did you mean 'small'?"
    ),
    "stop={eval_loss: scratch}": "stages.large.stop.eval_loss: 'scratch' is no number and no earlier training stage",
    "stop={eval_loss: grown}": "stages.large.stop.eval_loss: 'grown' is no number and no earlier training stage",
}


@pytest.mark.parametrize("setting", BAD)
def test_what_is_no_target_is_refused(tmp_path, setting):
    with pytest.raises(UserError) as caught:
        loaded(tmp_path, f"stages.large.{setting}")
    assert BAD[setting] in str(caught.value) and "\n" not in str(caught.value)


def test_text_has_no_accuracy():
    quickstart = Path(__file__).parents[2] / "configs" / "quickstart" / "bert.yaml"
    with pytest.raises(UserError, match=r"stages\.small\.stop\.top1: text is evaluated by its loss alone; name eval_"):
        config.load(quickstart, ["stages.small.stop={top1: 0.5}"])


def test_at_the_target_is_enough_and_each_measure_has_its_direction():
    measured = {"eval_loss": 2.5, "top1": 0.5, "perplexity": None}
    met = {(measure, value) for measure in ("eval_loss", "top1") for value in (0.4, 0.5, 0.6, 2.4, 2.5, 2.6)}
    assert {each for each in met if Target(*each).met_by(measured)} == {
        ("eval_loss", 2.5),
        ("eval_loss", 2.6),
        ("top1", 0.4),
        ("top1", 0.5),
    }
    assert not Target("top1", 0.1).met_by({"eval_loss": 2.5, "top1": None})


def test_a_number_may_be_written_as_yaml_reads_it_for_text(tmp_path):
    run = loaded(tmp_path, "stages.large.stop={eval_loss: 1e-3}")
    assert target_of(run, run.training_stage("large")) == Target("eval_loss", 0.001)


def test_a_stage_stands_for_its_last_evaluation(tmp_path):
    run = loaded(tmp_path, "stages.large.stop={eval_loss: small}")
    with pytest.raises(UserError, match=r"small: the stage has not ended, .* lemon train .* --stage small"):
        target_of(run, run.training_stage("large"))
    train(run.path, "small", SMALL, LOSSES)
    assert target_of(run, run.training_stage("large")) == Target("eval_loss", 3.0)


def test_only_the_evaluation_at_the_end_counts(tmp_path):
    stage = train(tmp_path, "small", SMALL, LOSSES, recompute=2)
    reached = reached_at(stage, Target("eval_loss", 3.5), 20)
    assert reached and (reached.step, reached.value, reached.flops) == (20, 3.0, 20 * 12)
    assert reached_at(stage, Target("eval_loss", 2.5), 20) is None
    assert reached_at(stage, Target("eval_loss", 3.5), 21) is None
    assert reached_at(stage, None, 20) is None


GOES_ON = {
    "stop={eval_loss: 3.25}": False,
    "stop={eval_loss: 3.5}": False,
    "stop={eval_loss: 2.9}": True,
    "stop=null": True,
    "stop={top1: 0.5}": True,
}


@pytest.mark.parametrize("setting", GOES_ON)
def test_an_ended_stage_goes_on_beyond_its_target_when_it_is_asked_to(tmp_path, setting):
    run = ended(tmp_path, f"stages.small.{setting}")
    stage = run.training_stage("small")
    assert goes_on(run, stage) == (not has_ended(run, stage)) == GOES_ON[setting]
    reopen(run, stage)
    assert RecordReader().stage(run.path / "small").finished != GOES_ON[setting]
    assert not goes_on(run, stage), "it is at work"


def test_what_starts_from_a_stage_waits_for_its_new_end(tmp_path):
    run = ended(tmp_path, "stages.small.stop={eval_loss: 2.9}")
    with pytest.raises(UserError, match=r"the stage ended at step 20, and is to go on, and what starts from it needs"):
        origin(run, "small")


def test_a_stage_does_not_go_on_when_others_began_from_its_end(tmp_path):
    run = ended(tmp_path, "stages.small.stop={eval_loss: 2.9}")
    expand(run.path, "grown", "small", LARGE)
    with pytest.raises(UserError) as caught:
        reopen(run, run.training_stage("small"))
    assert f"{run.path}/small: ended at step 20, and the config asks for more, but grown began from" in str(
        caught.value
    )
    kept = config.load(run.path.parent / "tiny.yaml", ["stages.small.stop={eval_loss: 3.25}"])
    require_open_end(kept, kept.training_stage("small"))


def test_a_stage_without_a_checkpoint_does_not_begin_anew(tmp_path):
    run = ended(tmp_path)
    shutil.rmtree(run.path / "small" / "checkpoints")
    with pytest.raises(UserError, match=r"it has no checkpoint to go on from; take another folder"):
        reopen(run, run.training_stage("small"))


def test_the_report_compares_where_the_stage_was_to_stop(tmp_path):
    """From scratch 5.0 at 200 FLOPs and 4.0 at 400; the expanded one stopped at 4.5 and has got to 4.4: it never
    reached the 4.0 at which the baseline ended."""
    met = {"step": 10, "measure": "eval_loss", "target": 4.5, "value": 4.4, "flops": 100}
    run = simple_run(tmp_path / "run")
    (run / "large" / "ledger.jsonl").unlink()
    (run / "large" / "metrics.jsonl").unlink()
    train(run, "large", LARGE, {0: 5.0, 10: 4.4}, origin="grown", steps=20, reached=met)
    report = build([run])
    one = report.runs[0].comparisons[0]
    assert (one.target.value, one.target.meaning) == (4.5, "at which 'large' was to stop")
    assert (one.scratch.flops, one.given.flops) == (300, 83)
    state = next(stage.state for stage in report.runs[0].stages if stage.stage == "large")
    assert state == "finished at step 10 of 20: evaluation loss 4.4000 reached its target 4.5"
    assert build([run], target=4.8).runs[0].comparisons[0].target.meaning == "as given"


def test_an_accuracy_that_was_reached_leaves_the_loss_to_compare_at_alone(tmp_path):
    met = {"step": 20, "measure": "top1", "target": 0.8, "value": 0.8125, "flops": 200}
    run = simple_run(tmp_path / "run", reached=met, steps=40)
    report = build([run])
    assert report.runs[0].comparisons[0].target.value == 4.0
    state = next(stage.state for stage in report.runs[0].stages if stage.stage == "large")
    assert state == "finished at step 20 of 40: top-1 accuracy 81.25 % reached its target 80 %"
