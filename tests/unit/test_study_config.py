"""A study's YAML becomes runs, in which what is shared is trained once; and what is told of its mistakes."""

from pathlib import Path

import pytest

from pipeline.config import validated
from pipeline.errors import UserError
from pipeline.records.run_folder import read_json
from pipeline.studies import running
from pipeline.studies.composed import of_seed, tuning
from pipeline.studies.planned import Outlook, PlannedStage, Speed, outlook
from pipeline.studies.running import fix_rule, words
from pipeline.studies.schema import Study
from pipeline.studies.trials import trials
from tests.helpers.cli import ROOT, lemon
from tests.helpers.invented_studies import RATE, content, study

PEAK = "large.schedule.peak"
CHOICES = {"scratch": {PEAK: 2.0e-3}, "lemon": {PEAK: 1.0e-3}}


def names(composed):
    return [stage.name for stage in composed.config.stages]


def test_what_trials_share_is_trained_once(tmp_path):
    tuned = tuning(study(tmp_path))
    expected = ["scratch-t1", "scratch-t2", "small", "lemon-t1-grown", "lemon-t1", "lemon-t2"]
    assert names(tuned) == expected
    by_name = {stage.name: stage for stage in tuned.config.stages}
    assert by_name["lemon-t1-grown"].source == "small"
    assert by_name["lemon-t1"].start == by_name["lemon-t2"].start == "lemon-t1-grown"
    assert [by_name[name].schedule.peak for name in ("lemon-t1", "lemon-t2")] == [1.0e-3, 2.0e-3]
    assert tuned.config.seed == 9 and tuned.config.data.evaluate == "validation"


def test_a_seed_trains_every_arm_as_it_was_chosen(tmp_path):
    own = study(tmp_path)
    composed = of_seed(own, 2, CHOICES)
    assert names(composed) == ["scratch", "half", "small", "lemon-grown", "lemon"]
    peaks = {stage.name: stage.schedule.peak for stage in composed.config.stages if stage.kind == "train"}
    assert peaks == {"scratch": 2.0e-3, "half": 2.0e-3, "small": 1.0e-3, "lemon": 1.0e-3}
    assert composed.config.seed == 2 and composed.config.data.evaluate == "test"
    assert composed.config.baseline == "scratch" and composed.path == tmp_path / "seed-2"


def test_a_source_that_a_trial_changes_is_one_of_its_own(tmp_path):
    arms = content(tmp_path)["arms"]
    arms["lemon"]["tune"] = [{"small.schedule.horizon": "20 steps"}, {PEAK: 2.0e-3}]
    tuned = tuning(study(tmp_path, arms=arms))
    first, *others = (name for name in names(tuned) if "small" in name)
    assert first == "lemon-t1-small" and others == ["small"]
    assert next(s for s in tuned.config.stages if s.name == "lemon-t1-grown").source == "lemon-t1-small"


def test_a_grid_is_every_combination_in_its_order(tmp_path):
    arms = content(tmp_path)["arms"]
    for arm in ("scratch", "lemon"):
        arms[arm]["tune"] = {PEAK: [1.0e-3, 2.0e-3], "large.schedule.warmup": ["1 steps", "2 steps", "3 steps"]}
    own = study(tmp_path, arms=arms, tuning={"trials": 6, "seed": 9})
    tried = [trial.settings for trial in trials(own, "lemon")]
    assert tried[0] == {PEAK: 1.0e-3, "large.schedule.warmup": "1 steps"} and len(tried) == 6
    assert tried[1] == {PEAK: 1.0e-3, "large.schedule.warmup": "2 steps"}


def test_an_arm_under_fewer_seeds(tmp_path):
    arms = content(tmp_path)["arms"]
    arms["lemon"]["seeds"] = [2]
    own = study(tmp_path, arms=arms)
    assert "lemon" not in names(of_seed(own, 1, CHOICES)) and "lemon" in names(of_seed(own, 2, CHOICES))


def changed(folder, place, value):
    tree = content(folder)
    node, keys = tree, place.split(".")
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    return tree


@pytest.mark.parametrize("place, value, said", [
    ("baseline", "scrath", "baseline: no arm 'scrath'; did you mean 'scratch'?"),
    ("frontier", ["quarter"], "frontier: no arm 'quarter'"),
    ("smooth", 4, "smooth: 4 evaluations have no middle; choose an odd number"),
    ("seeds", [1, 1], "each seed is a whole number of at least 0, and stands there once"),
    ("seeds", [1, 9], "tuning.seed: 9 is a seed of the comparison too"),
    ("run.seed", 3, "run.seed: a study decides that itself; leave it out"),
    ("run.data", {"kind": "text", "evaluate": "test"}, "run.data.evaluate: a study tunes on the validation half"),
    ("arms.scratch.tune", {}, "arms.lemon.tune: the baseline 'scratch' is not tuned; tune it as hard"),
    ("arms.lemon.tune", {PEAK: [1.0]}, "arms.lemon.tune: 1 trials, and tuning.trials is 2; all arms are tuned alike"),
    ("arms.half.like", "half", "arms.half.like: 'half' is no other arm that is tuned"),
    ("arms.half.stages", [{"name": "other"}], "'scratch' is tuned by large.schedule.peak, and this arm has no stage"),
    ("arms.lemon.seeds", [3], "arms.lemon.seeds: 3 is none of the study's seeds"),
    ("arms.scratch.seeds", [1], "arms.scratch.seeds: the baseline is trained under all seeds; leave it out"),
    ("arms.lemon.colour", 1, "unknown key"),
])  # fmt: skip
def test_mistakes_are_told(tmp_path, place, value, said):
    with pytest.raises(UserError) as caught:
        validated(Study, changed(tmp_path, place, value), Path("study.yaml"))
    assert said in str(caught.value) and str(caught.value).startswith("study.yaml: ")


STOP = {"kind": "train", "name": "large", "model": "large", "batch": 4, "schedule": RATE, "stop": {"eval_loss": 3.0}}


@pytest.mark.parametrize("place, value, said", [
    ("arms.lemon.tune", {"lage.schedule.peak": [1.0, 2.0]}, "arms.lemon.tune: the config has no key"),
    ("arms.half.stages", [STOP], "stop: a study compares whole curves; leave it out"),
    ("arms.half.stages", [{**STOP, "stop": None, "model": "small"}], "all arms end with the same model"),
    ("arms.lemon.stages", content(Path("x"))["arms"]["lemon"]["stages"][:1], "ends with an expansion"),
    ("run.models", {}, "models: needs 1 or more entries"),
])  # fmt: skip
def test_runs_that_cannot_be_are_told(tmp_path, place, value, said):
    tree = changed(tmp_path, place, value)
    if place == "arms.lemon.stages":
        tree["arms"]["lemon"].pop("tune")
    own = validated(Study, tree, Path("study.yaml"))
    with pytest.raises(UserError) as caught:
        both(own)
    assert said in str(caught.value), caught.value


def both(own):
    of_seed(own, 1, {})
    tuning(own)


def test_a_rule_is_fixed_and_what_comes_later_is_dated(tmp_path, monkeypatch):
    fix_rule(study(tmp_path))
    with pytest.raises(UserError, match=r"the study began with target 'final', and the config has 4\.0; a rule"):
        fix_rule(study(tmp_path, target=4.0))

    class Later(running.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2100, 1, 1, tzinfo=tz)

    monkeypatch.setattr(running, "datetime", Later)
    fix_rule(study(tmp_path, seeds=[1, 2, 3]))
    held = read_json(tmp_path / "protocol.json")
    assert held["seeds"]["3"] == "2100-01-01" > held["seeds"]["1"]


def stage(name, done=False, took=None, shape="a", steps=10):
    return PlannedStage(Path(name), "run", name, "train", shape, steps, 100, 0.5, done, took)


def test_what_stages_took_corrects_what_is_left():
    speeds = {"a": Speed(step=2.0, start=10.0)}
    found = outlook([stage("one"), stage("two")], speeds)
    assert found == Outlook(done=0, stages=2, flops=0.0, seconds=80.0)  # 2 x (10 + 10 steps x 2 s x 1.5)
    found = outlook([stage("one", done=True, took=80.0), stage("two")], speeds)
    assert found == Outlook(done=1, stages=2, flops=0.5, seconds=80.0)  # twice as slow as it was guessed
    assert words(found) == "1 of 2 stages done, 50.0 % of the FLOPs, about 1 min 20 s left"
    assert outlook([stage("one", shape="b")], speeds).seconds is None


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_can_be_planned(path, tmp_path, capsys):
    code, said, error = lemon(capsys, "study", path, f"folder={tmp_path}/x", "run.data.dataset=embedded", "--dry-run")
    assert code == 0, error
    assert "to do" in said and "not known: speeds are measured when the study begins" in said
    assert not (tmp_path / "x").exists()


def test_a_file_that_is_no_study(capsys):
    code, _, error = lemon(capsys, "study", ROOT / "configs" / "quickstart" / "bert.yaml", "--dry-run")
    assert code == 2 and "arms: is missing" in error
