"""Stages that share one schedule: where each begins, and what they must agree in."""

import json
from pathlib import Path

import pytest
import yaml

from pipeline import config, data, models
from pipeline.config.schema import Config
from pipeline.errors import UserError
from pipeline.training.length import pace, rates
from tests.helpers.chains import PLAN, chain
from tests.helpers.cli import lemon
from tests.helpers.invented_runs import SMALL, train
from tests.helpers.runs import BATCH


def test_a_chain_is_planned_before_it_begins(tmp_path, capsys):
    code, out, error = lemon(capsys, "run", chain(tmp_path), "--dry-run", "--json")
    assert code == 0, error
    assert ' "begin": 12' in out


@pytest.mark.parametrize("name", ["bert", "vit"])
def test_the_shipped_chains_are_planned(tmp_path, capsys, name):
    """Every chain trains as many steps as the run without a growth."""
    path = Path(__file__).parents[2] / "configs" / "growth" / f"in-mid-run-{name}.yaml"
    code, out, error = lemon(capsys, "run", path, f"folder={tmp_path}/run", "--dry-run", "--json", "processes=2")
    assert code == 0, error
    steps = {stage["name"]: stage["schedule"]["steps"] for stage in json.loads(out)["stages"] if "schedule" in stage}
    for first in ("one", "none"):
        for share in (50, 80):
            assert steps[f"{first}-to-{share}"] + steps[f"from-{first}-at-{share}"] == steps["full"]
    assert steps["narrow-to-20"] + steps["from-narrow-at-20"] == steps["full"]


@pytest.mark.parametrize(
    "horizon, batch, begin",
    [("40 steps", BATCH, 12), ("640 samples", 2 * BATCH, 6), ("4 epochs", BATCH, 131), ("640 samples", 3 * BATCH, 4)],
)
def test_it_begins_where_the_training_before_has_ended(tmp_path, horizon, batch, begin):
    """In the unit of the horizon: 12 steps of 16 samples, 30 % of 4 epochs of 1,737 images."""
    parts = {"warmup": f"1 {horizon.split()[1]}", "decay": f"1 {horizon.split()[1]}"}
    loaded = config.load(chain(tmp_path, {**PLAN, **parts, "horizon": horizon}, batch=batch))
    planned = planned_rates(loaded)
    assert planned.begin == pytest.approx(begin) and planned.begin + planned.steps == planned.horizon


def test_it_goes_on_from_where_a_target_has_ended_the_training_before(tmp_path):
    loaded = config.load(chain(tmp_path))
    train(loaded.path, "small", SMALL, {0: 5.0, 7: 4.0}, steps=7, samples_per_step=BATCH)
    assert planned_rates(loaded).begin == 7


def test_flops_of_the_training_before_are_those_that_its_steps_were_counted_by(tmp_path):
    """It has gone on under activation checkpointing, in steps of 90 FLOPs instead of 60."""
    parts = {"warmup": "60 flops", "decay": "60 flops", "horizon": "1e12 flops"}
    loaded = config.load(chain(tmp_path, {**PLAN, **parts}))
    small = train(loaded.path, "small", SMALL, {0: 5.0, 7: 4.0}, steps=7, flops=60, samples_per_step=BATCH)
    facts = json.loads(small.facts_file.read_text())
    again = {**facts["starts"][0], "step": 3, "flops_per_step": {"train": 60, "recompute": 30}}
    facts |= {"flops_per_step": again["flops_per_step"], "starts": [*facts["starts"], again]}
    small.facts_file.write_text(json.dumps(facts))
    planned = planned_rates(loaded)
    assert planned.begin == pytest.approx(7 * 60 / (1e12 / planned.horizon), rel=1e-3)


def test_a_stage_that_has_saved_nothing_begins_where_the_training_before_ends_now(tmp_path):
    loaded = config.load(chain(tmp_path))
    train(loaded.path, "small", SMALL, {0: 5.0, 9: 4.0}, steps=9, samples_per_step=BATCH)
    begun = {"schedule": vars(planned_rates(loaded)) | {"begin": 12, "steps": 28}}
    train(loaded.path, "large", SMALL, {0: 5.0}, steps=28, finished=False, **begun)
    assert (planned_rates(loaded).begin, planned_rates(loaded).steps) == (9, 31)


def planned_rates(loaded: Config):
    """The rates of `large` as if it began, from fresh weights."""
    if not (loaded.path / "data").exists():
        data.prepare(loaded.data, loaded.seed, loaded.path / "data")
    large = loaded.training_stage("large")
    facts = data.data_of(loaded, large)
    return rates(loaded, large, pace(large, models.trained(loaded.models["large"], facts.facts), facts), facts)


BAD = {
    "stages.large.start=null": "stages.large.schedule.continue: it starts from fresh weights; leave it out",
    "stages.large.schedule.peak=2e-3": "stages.large.schedule.peak: 'small' has 0.001, this 0.002; one that goes on",
    "stages.large.schedule.horizon=41 steps": "stages.large.schedule.horizon: 'small' has 40 steps, this 41 steps",
    "stages.small.schedule.warmup=100 samples": "stages.large.schedule.warmup: 'small' has 100 samples, this 4 steps",
    "stages.small.grow_at=0.8": "stages.small.grow_at: a share needs a number and a percent sign, such as '80 %'",
    "stages.small.schedule.steps=3 steps": "stages.small: grow_at and schedule.steps both say how long it is",
}


@pytest.mark.parametrize("change", BAD)
def test_what_is_no_chain_is_refused(tmp_path, change):
    with pytest.raises(UserError) as caught:
        config.load(chain(tmp_path), [change])
    assert BAD[change] in str(caught.value)


def test_warmup_and_decay_are_in_the_unit_of_the_horizon(tmp_path):
    with pytest.raises(UserError) as caught:
        config.load(chain(tmp_path, {**PLAN, "horizon": "640 samples"}))
    assert "stages.large.schedule.warmup: 4 steps beside a horizon in samples" in str(caught.value)
    assert "stages.large.schedule.decay: 6 steps beside a horizon in samples" in str(caught.value)


def test_a_chain_that_starts_elsewhere_is_refused(tmp_path):
    with pytest.raises(UserError, match=f"'{tmp_path}' is no stage of this config"):
        config.load(chain(tmp_path), [f"stages.large.start={tmp_path}"])


def test_expansions_of_each_other_are_no_chain(tmp_path):
    content = yaml.safe_load(chain(tmp_path).read_text())
    next(stage for stage in content["stages"] if stage["name"] == "grown")["source"] = "grown"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"stages.grown.source: 'grown' is no earlier stage and no folder"):
        config.load(tmp_path / "tiny.yaml")


def test_the_dry_run_says_where_a_stage_begins(tmp_path, capsys):
    _, out, _ = lemon(capsys, "run", chain(tmp_path), "--dry-run")
    assert "large: wsd, peak 0.001, 28 steps from step 12 of the schedule, horizon 40" in " ".join(out.split())


def test_a_schedule_that_has_ended_is_not_gone_on_with(tmp_path, capsys):
    code, _, error = lemon(capsys, "run", chain(tmp_path), "--dry-run", "stages.small.grow_at=null")
    assert code == 2 and "stages.large.schedule: it would end at step 40 of its horizon, and begins at 40" in error
    assert "give that an earlier grow_at" in error
