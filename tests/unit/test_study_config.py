"""A study's YAML becomes runs, in which what is shared is trained once; and what is told of its mistakes."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from pipeline.config import validated
from pipeline.errors import UserError
from pipeline.records.run_folder import write_json
from pipeline.studies import choice, protocol, running
from pipeline.studies.composed import of_seed, tuning
from pipeline.studies.planned import Outlook, PlannedStage, Speed, outlook
from pipeline.studies.running import words
from pipeline.studies.schema import Study
from pipeline.studies.trials import trials
from tests.helpers.cli import ROOT, lemon
from tests.helpers.invented_studies import FAMILY, RATE, content, study

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


def test_an_arm_more_renames_no_stage(tmp_path):
    """Of the arms that are there: what has begun goes on."""
    arms = content(tmp_path)["arms"]
    twin = {**arms["lemon"], "tune": {PEAK: [3.0e-3, 4.0e-3]}}
    before = names(tuning(study(tmp_path))), names(of_seed(study(tmp_path), 1, CHOICES))
    changed = study(tmp_path, arms={"twin": twin, **arms})
    after = names(tuning(changed)), names(of_seed(changed, 1, CHOICES))
    assert all(set(old) <= set(new) for old, new in zip(before, after, strict=True))


def test_choices_are_taken_from_another_study(tmp_path):
    (tmp_path / "first").mkdir()
    write_json(tmp_path / "first" / choice.FILE, CHOICES)
    own = study(tmp_path / "second", tuned_in=str(tmp_path / "first"), seeds=[6])
    assert choice.complete(own) and choice.recorded(own) == CHOICES
    assert [composed.name for composed in running.all_runs(own)] == ["seed-6"]
    assert tuning(own).path == tmp_path / "first" / "tuning"
    write_json(tmp_path / "first" / choice.FILE, {"lemon": 3})
    with pytest.raises(UserError, match=r"choices.json: not what was chosen for each arm; the file is damaged"):
        choice.recorded(own)


def test_an_arm_without_a_choice_is_planned_by_its_first_trial(tmp_path):
    own = study(tmp_path)
    write_json(tmp_path / choice.FILE, {"scratch": {PEAK: 2.0e-3}})
    _, first, _ = running.all_runs(own)
    peaks = {stage.name: stage.schedule.peak for stage in first.config.stages if stage.kind == "train"}
    assert peaks["scratch"] == 2.0e-3 and peaks["lemon"] == 1.0e-3


def test_a_trial_that_has_broken_down_is_left_out_and_renames_nothing(tmp_path):
    own = study(tmp_path)
    whole, left = tuning(own), tuning(own, {"lemon-t1", "scratch-t2"})
    assert names(left) == ["scratch-t1", "small", "lemon-t1-grown", "lemon-t2"]
    assert set(names(left)) < set(names(whole)) and set(left.ends) == {"scratch-t1", "lemon-t2"}


def test_an_arm_under_fewer_seeds(tmp_path):
    arms = content(tmp_path)["arms"]
    arms["lemon"]["seeds"] = [2]
    own = study(tmp_path, arms=arms)
    assert "lemon" not in names(of_seed(own, 1, CHOICES)) and "lemon" in names(of_seed(own, 2, CHOICES))
    arms["lemon"]["seeds"] = 1
    first = study(tmp_path, arms=arms)
    assert (first.seeds_of("lemon"), first.seeds_of("half")) == ([1], [1, 2])
    assert study(tmp_path, arms=arms, seeds=[6, 7]).seeds_of("lemon") == [6]


def test_only_keeps_the_arm_whose_choice_is_taken(tmp_path):
    arms = content(tmp_path)["arms"]
    like = {"stages": arms["lemon"]["stages"], "like": "lemon"}
    own = study(tmp_path, arms={**arms, "like": like, "other": like}, only=["like"])
    assert list(own.arms) == ["scratch", "half", "lemon", "like"]


def test_only_some_arms(tmp_path):
    arms = content(tmp_path)["arms"]
    own = study(tmp_path, arms={**arms, "twin": arms["lemon"]}, only=["twin"])
    assert list(own.arms) == ["scratch", "half", "twin"]


@pytest.mark.parametrize("frontier", ["half", 3, [["half"]], None])
def test_only_some_arms_beside_a_frontier_that_is_no_list(tmp_path, frontier):
    with pytest.raises(UserError, match="frontier"):
        study(tmp_path, only=["lemon"], frontier=frontier)


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
    ("arms.lemon.seeds", 0, "arms.lemon.seeds"),
    ("only", ["lemn"], "only: no arm 'lemn'; did you mean 'lemon'?"),
    ("only", [["lemon"]], "only: no arm '['lemon']'"),
    ("frontier", "half", "frontier"),
    ("arms.scratch.seeds", [1], "arms.scratch.seeds: the baseline is trained under all seeds; leave it out"),
    ("arms.lemon.colour", 1, "unknown key"),
    ("arms.lemon.tune", {PEAK: [1.0e-3, 0.001]}, "arms.lemon.tune: two of its trials are the same"),
    ("arms.lemon.tune", [{}, {PEAK: 1.0e-3}], "arms.lemon.tune: a trial without settings"),
    ("arms.lemon.tune", {"large": [1, 2]}, "arms.lemon.tune.large: a key is STAGE.KEY"),
    ("arms.lemon.stages", [{"kind": "train"}], "arms.lemon: a stage has no name"),
    ("arms.lemon.stages", [{"name": ["x"]}], "arms.lemon: a stage has no name"),
    ("arms.lemon.stages", [{"name": "x", "source": ["x"]}], "arms.lemon.x.source: names a stage or a folder"),
    ("arms.lemon.stages", [{"name": "small"}], "its stage 'small' has the name of a source"),
    ("smaller", ["half"], "smaller: an arm stands there once, and neither the baseline nor its frontier does"),
    ("smaller", ["tiny"], "smaller: no arm 'tiny'"),
    ("frontier", ["half", "half"], "frontier: an arm stands there once"),
    ("frontier", ["scratch"], "frontier: an arm stands there once, and the baseline not at all"),
    ("metric", "top1", "metric: top1 is of images; text is evaluated by its loss"),
    ("target", -1.0, "target: -1.0 is no value of loss that is to be reached"),
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
    ("smaller", ["lemon"], "what growing is compared with begins from scratch, and this starts from 'lemon-grown'"),
    ("frontier", ["lemon"], "what growing is compared with begins from scratch, and this starts from 'lemon-grown'"),
    ("arms.half.stages", [{**STOP, "stop": None, "data": {"block": 16}}], "all arms end with the same block"),
])  # fmt: skip
def test_runs_that_cannot_be_are_told(tmp_path, place, value, said):
    tree = changed(tmp_path, place, value)
    if place == "arms.lemon.stages":
        tree["arms"]["lemon"].pop("tune")
    own = validated(Study, tree, Path("study.yaml"))
    with pytest.raises(UserError) as caught:
        both(own)
    assert said in str(caught.value), caught.value


TARGET = {**FAMILY, "layers": 4, "hidden": 16, "heads": 4}


@pytest.mark.parametrize("sizes, said", [
    (TARGET, "4 layers, 16 hidden and 64 MLP units is not smaller than the target, of 4 layers, 16 hidden and 64"),
    ({**TARGET, "layers": 2, "hidden": 32}, "2 layers, 32 hidden and 128 MLP units is not smaller than the target"),
    ({**TARGET, "family": "llama", "layers": 2}, "trains a llama, and the target is a bert-pre-ln; take one family"),
    ({**TARGET, "mlp": 32}, None),
    ({**TARGET, "layers": 2}, None),
])  # fmt: skip
def test_a_smaller_arm_trains_a_smaller_model(tmp_path, sizes, said):
    tree = content(tmp_path, smaller=["again"], only=["lemon"])
    tree["run"]["models"]["again"] = sizes
    tree["arms"]["again"] = {"stages": [{**tree["arms"]["scratch"]["stages"][0], "name": "again", "model": "again"}]}
    own = validated(Study, tree, Path("study.yaml"))
    with pytest.raises(UserError, match=f"'again': smaller: .*{said}") if said else nullcontext():
        both(own)


def test_choices_are_taken_by_the_rule_that_made_them(tmp_path):
    first = study(tmp_path / "first")
    first.path.mkdir()
    protocol.fix(first, "x")
    again = {"tuned_in": str(first.path), "seeds": [6]}
    assert protocol.of(study(tmp_path / "again", **again)) is None
    with pytest.raises(UserError, match=r"first/protocol\.json: chosen there with tuning .*'margin': 0\.0"):
        protocol.of(study(tmp_path / "again", **again, tuning={"trials": 2, "seed": 9, "margin": 0.3}))


def test_a_margin_of_top1_is_a_share(tmp_path):
    with pytest.raises(UserError, match=r"tuning\.margin: 2 of top1 is more than all"):
        study(tmp_path, metric="top1", tuning={"trials": 2, "seed": 9, "margin": 2.0})


def both(own):
    of_seed(own, 1, {})
    tuning(own)


def test_a_rule_is_fixed_and_what_comes_later_is_dated(tmp_path, monkeypatch):
    own = study(tmp_path)
    protocol.fix(own, "x")
    with pytest.raises(UserError, match=r"the study began with target 'final', and the config has 4\.0; a rule"):
        protocol.fix(study(tmp_path, target=4.0), "x")

    class Later(protocol.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2100, 1, 1, tzinfo=tz)

    monkeypatch.setattr(protocol, "datetime", Later)
    changed = study(tmp_path, seeds=[2, 3])
    protocol.fix(changed, "x")
    held = protocol.of(changed)
    assert protocol.added(own, held) == {} and protocol.dropped(changed, held) == [
        f"{arm} under seed 1" for arm in ("scratch", "half", "lemon")
    ]
    assert protocol.added(changed, held)["lemon under seed 3"] == "2100-01-01T00:00:00+00:00"
    (tmp_path / protocol.FILE).write_text('{"rule": {}}')
    with pytest.raises(UserError, match="not what a study plans; the file is damaged"):
        protocol.of(changed)


def test_a_rule_from_before_there_was_a_margin_had_none(tmp_path):
    own = study(tmp_path)
    protocol.fix(own, "x")
    path = tmp_path / protocol.FILE
    held = json.loads(path.read_text())
    del held["rule"]["tuning"]["margin"]
    path.write_text(json.dumps(held))
    assert protocol.of(own).rule["tuning"] == {"trials": 2, "seed": 9, "margin": 0.0}
    with pytest.raises(UserError, match=r"the study began with tuning .*'margin': 0.0.*, and the config has .*0.1"):
        protocol.of(study(tmp_path, tuning={"trials": 2, "seed": 9, "margin": 0.1}))


def stage(name, done=False, took=None, shape="a", steps=10):
    return PlannedStage(Path(name), "run", name, "train", shape, steps, 100, 0.5, done, took)


def test_what_stages_took_corrects_what_is_left():
    speeds = {"a": Speed(step=2.0, start=10.0, rate=5.0)}
    found = outlook([stage("one"), stage("two")], speeds)
    assert found == Outlook(done=0, stages=2, flops=0.0, seconds=80.0)  # 2 x (10 + 10 steps x 2 s x 1.5)
    found = outlook([stage("one", done=True, took=80.0), stage("two")], speeds)
    assert found == Outlook(done=1, stages=2, flops=0.5, seconds=80.0)  # twice as slow as it was guessed
    assert words(found) == "1 of 2 stages done, 50.0 % of the FLOPs, about 1 min 20 s left"
    assert outlook([stage("one", shape="b")], speeds).seconds is None


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_studies_can_be_planned(path, tmp_path, capsys):
    code, said, error = lemon(
        capsys, "study", path, f"folder={tmp_path}/x", "--dry-run", "--mfu", 0.4, "--device", "A100"
    )
    assert code == 0, error
    assert "to do" in said and "not known: speeds are measured when the study begins" in said
    assert "device-hours" in said and not (tmp_path / "x").exists()


def test_a_run_is_no_study_and_a_study_no_run(capsys):
    code, _, error = lemon(capsys, "study", ROOT / "configs" / "quickstart" / "bert.yaml", "--dry-run")
    assert code == 2 and "arms: is missing" in error
    code, _, error = lemon(capsys, "run", ROOT / "configs" / "studies" / "bert.yaml", "--dry-run")
    assert code == 2 and "this is a study, no run; start it by lemon study" in error
