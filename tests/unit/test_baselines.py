"""Which stage from scratch is compared with, at which target, and what a reader is told of the comparison."""

import shutil

import pytest
import yaml

from pipeline.config import load
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder, write_json
from pipeline.records.stage_records import EvaluationRecord
from pipeline.report import build, summary, write
from tests.helpers.cli import lemon
from tests.helpers.invented_runs import LARGE, SCRATCH_LOSS, SETTINGS, STAGES, make_run, simple_run, train

BAD = {0: 8.0, 40: 7.0}


def with_another(run, name="bad", losses=BAD, **facts):
    """The run, with another stage from scratch in front of the good one."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["stages"].insert(0, {"name": name, "kind": "train"})
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    train(run, name, LARGE, losses, **facts)
    return run


def again(run, name, losses, **facts):
    """The stage, trained to other losses."""
    shutil.rmtree(run / name)
    train(run, name, LARGE, losses, **facts)


def only(*runs, **rule):
    content = build(runs, **rule).runs[0]
    (one,) = content.comparisons
    return one, content.remarks


def test_the_best_of_several_baselines_is_taken_and_the_others_are_listed(tmp_path):
    one, remarks = only(with_another(simple_run(tmp_path / "run")))
    assert one.baseline.stage == "scratch" and one.given.saving_percent == pytest.approx(62.5)
    (remark,) = remarks
    assert remark.startswith("Baseline of 'large': 'scratch', which ends best (4.0000); the others: 'bad' (7.0000).")


def test_a_named_baseline_is_taken(tmp_path):
    run = with_another(simple_run(tmp_path / "run"))
    one, remarks = only(run, baseline="bad")
    assert one.baseline.stage == "bad" and one.target.value == 7.0 and not remarks
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "baseline": "bad"}))
    assert only(run)[0].baseline.stage == "bad" and only(run, baseline="scratch")[0].baseline.stage == "scratch"
    assert "--baseline bad" in build([run], baseline="bad").command


def test_a_named_baseline_that_is_none_is_told(tmp_path):
    run = simple_run(tmp_path / "run")
    assert not build([run], baseline="small").runs[0].comparisons
    (remark,) = build([run], baseline="small").runs[0].remarks
    assert "'small', the baseline, does not train model 'model-16' from scratch" in remark
    with pytest.raises(UserError, match="--baseline scrath: no training is called so; did you mean 'scratch'"):
        build([run], baseline="scrath")


@pytest.mark.parametrize("setting, words", [
    ({"batch": 8}, "batch 4, not 8"),
    ({"seed": 3}, "seed 0, not 3"),
    ({"precision": "bf16"}, "precision fp32, not bf16"),
    ({"optimizer": {"eps": 1e-6}}, "optimizer.eps 1e-08, not 1e-06"),
])  # fmt: skip
def test_settings_that_differ_are_told(tmp_path, setting, words):
    run = make_run(tmp_path / "run", STAGES)
    simple = simple_run(tmp_path / "simple")
    for name in ("small", "grown", "large"):
        (simple / name).rename(run / name)
    train(run, "scratch", LARGE, SCRATCH_LOSS, settings={**SETTINGS, **setting})
    _, (remark,) = only(run)
    assert words in remark and "differ in more than their start" in remark


def test_a_rate_that_has_not_decayed_is_told(tmp_path):
    run = simple_run(tmp_path / "run")
    schedule = {"kind": "cosine", "peak": 1e-3, "warmup": 2, "steps": 40, "horizon": 90}
    again(run, "scratch", SCRATCH_LOSS, schedule=schedule)
    assert "has not decayed to its end" in only(run)[1][0]
    again(run, "scratch", SCRATCH_LOSS, schedule={**schedule, "begin": 50})
    assert not only(run)[1]


def test_a_baseline_that_becomes_worse_is_told(tmp_path):
    run = simple_run(tmp_path / "run")
    again(run, "scratch", {0: 8.0, 10: 4.0, 40: 6.0})
    one, (remark,) = only(run)
    assert one.target.value == 6.0 and one.scratch.flops == 50
    assert "'scratch' ends at 6.0000, its best is 4.0000 at step 10" in remark and "--target lowest" in remark
    one, _ = only(run, target="lowest")
    assert one.target.value == 4.0 and one.target.meaning == "the best evaluation loss of 'scratch', at step 10"
    assert one.scratch.flops == 100 and one.given.flops == 150


def test_a_target_that_is_left_again_is_called_so(tmp_path):
    run = simple_run(tmp_path / "run")
    again(run, "large", {0: 5.0, 10: 3.5, 20: 4.5}, origin="grown", flops=8, recompute=2)
    report = build([run])
    assert report.runs[0].comparisons[0].given.lost
    words = "'large' has not reached the target for good: lowest loss 3.5000 (step 10, 100 FLOPs), at the end 4.5000"
    assert words in summary(report)
    assert "not kept: " in write(report, tmp_path / "out").read_text()


def test_other_masks_are_not_compared(tmp_path):
    run, other = simple_run(tmp_path / "run"), make_run(tmp_path / "other", {"scratch": "train"})
    (run / "scratch" / "stage.json").unlink()
    train(other, "scratch", LARGE, SCRATCH_LOSS)
    assert only(run, other)[0].baseline.run == "other"
    facts = {"kind": "text", "unigram_entropy": 6.2, "masking": 2}
    write_json(other / "data" / "data.json", {"facts": facts})
    assert not build([run, other]).runs[0].comparisons


def accurate(run):
    for name, shares in (("large", {10: 0.5, 20: 0.7}), ("scratch", {20: 0.4, 40: 0.6})):
        stage = StageFolder(run / name)
        records = list(stage.metrics)
        stage.metrics.path.unlink()
        for record in records:
            top1 = shares.get(record.step)
            known = isinstance(record, EvaluationRecord)
            stage.metrics.append(record.model_copy(update={"top1": top1}) if known else record)
    return run


def test_accuracy_is_compared_where_it_is_asked_for(tmp_path):
    run = accurate(simple_run(tmp_path / "run"))
    one, _ = only(run, metric="top1")
    assert (one.target.value, one.scratch.flops, one.given.flops) == (0.6, 400, 150)
    assert "until the top-1 accuracy is 0.6000 for good" in summary(build([run], metric="top1"))
    page = write(build([run], metric="top1", target=0.65), tmp_path / "out").read_text()
    assert "highest top-1 accuracy 0.6000" in page
    with pytest.raises(UserError, match="a share from 0 to 1"):
        build([run], metric="top1", target=60.0)
    assert not build([simple_run(tmp_path / "text")], metric="top1").runs[0].comparisons


def test_the_command_takes_all_of_it(tmp_path, capsys):
    run = accurate(with_another(simple_run(tmp_path / "run")))
    code, said, _ = lemon(capsys, "report", run, "--metric", "accuracy", "--baseline", "scratch", "--target", "lowest")
    assert code == 0 and "the best top-1 accuracy of 'scratch', at step 40" in said
    with pytest.raises(SystemExit):
        lemon(capsys, "report", run, "--target", "low")
    assert "neither 'final' nor 'lowest'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["small-grown", "grown", "nothing"])
def test_error_a_baseline_that_is_no_training_from_scratch(name):
    with pytest.raises(UserError, match=f"baseline: '{name}' is no training from scratch"):
        load("configs/quickstart/bert.yaml", [f"baseline={name}"])
