"""The pilot: what it trains, and what it makes of two curves."""

from dataclasses import replace
from fractions import Fraction

import pytest
import yaml

from pipeline import config, data
from pipeline.accounting.recorded_runs import Evaluation
from pipeline.cli.pilot_command import _words
from pipeline.errors import UserError
from pipeline.runs.pilot import Wanted, growth_of, mixed_behind, mixing, pilot_of, points
from pipeline.training.fingerprint import Fingerprint, differences
from tests.helpers.chains import PLAN, chain
from tests.helpers.cli import lemon
from tests.helpers.invented_runs import SMALL, train
from tests.helpers.runs import tiny_run

WANTED = Wanted(None, Fraction(1, 10), Fraction(1, 5), 0.01)


def curve(losses: dict[int, float]) -> list[Evaluation]:
    return [Evaluation(step=step, flops=step, loss=loss) for step, loss in losses.items()]


def test_losses_are_compared_at_equal_steps():
    """Growth behind 15 steps: 15 lies half way between the full model's evaluations at 10 and 20."""
    found = points(curve({0: 9.0, 10: 5.0, 20: 4.0, 30: 2.0}), curve({0: 9.0, 5: 4.4, 15: 2.0, 25: 1.0}), 15)
    assert [(point.step, point.full) for point in found] == [(0, 4.5), (5, 4.0), (15, 2.0)]
    assert [point.gap for point in found] == pytest.approx([1.0, 0.1, 0.0])
    assert mixed_behind(found, 0.01) is None and mixed_behind(found, 0.2) == 5 and mixed_behind(found, 1.0) == 0


def test_a_gap_that_comes_back_is_not_mixed():
    found = points(curve({0: 1.0, 40: 1.0}), curve({0: 2.0, 10: 1.0, 20: 1.5, 30: 1.001, 40: 1.0}), 0)
    assert mixed_behind(found, 0.01) == 30
    assert mixed_behind(found[:4], 0.01) is None, "one evaluation is not enough"


def test_the_pilot_is_a_run_beside_the_run(tmp_path):
    """40 steps, of which it grows behind 4 and trains 8 more."""
    loaded = config.load(chain(tmp_path))
    derived = pilot_of(loaded, growth_of(loaded, None), WANTED)
    assert derived.path == tmp_path / "run-pilot-grown-at-10" and derived.name == "tiny-pilot-grown-at-10"
    full, before, growth, behind = derived.stages
    assert [stage.name for stage in derived.stages] == ["full", "before", "growth", "behind"]
    assert (full.model, before.model, growth.model, behind.model) == ("large", "small", "large", "large")
    assert {(str(stage.schedule.horizon), stage.schedule.kind) for stage in (full, before, behind)} == {
        ("40 steps", "constant")
    }
    assert (str(full.schedule.steps), before.grow_at, str(behind.schedule.steps)) == ("12 steps", "10 %", "8 steps")
    assert behind.schedule.continues and behind.data.continues and not full.data.continues
    assert (full.start, before.start, behind.start) == (None, None, "growth")
    assert growth.method == loaded.stage("grown").method
    assert str(full.evaluate_every) == "0.4 steps"


def test_a_longer_pilot_goes_on(tmp_path):
    """What decides its numbers is the same; only its length and its evaluations are others."""
    loaded = config.load(chain(tmp_path))
    growth = growth_of(loaded, None)
    short, long = (pilot_of(loaded, growth, replace(WANTED, length=Fraction(n, 10))) for n in (2, 4))
    assert short.path == long.path
    for one, other in zip(short.stages, long.stages, strict=True):
        kept = Fingerprint.of(short, one).settings(), Fingerprint.of(long, other).settings()
        apart = {place for place, _, _ in differences(*kept)}
        assert apart <= {"stage.schedule.steps", "origin.stage.schedule.steps"}, one.name


def test_expansions_that_follow_each_other_are_one_growth(tmp_path):
    path = chain(tmp_path)
    content = yaml.safe_load(path.read_text())
    grown, large = (next(s for s in content["stages"] if s["name"] == name) for name in ("grown", "large"))
    content["models"]["middle"] = {**content["models"]["small"], "layers": 3}
    grown["model"] = "middle"
    place = content["stages"].index(large)
    content["stages"].insert(place, {"kind": "expand", "name": "wider", "source": "grown", "model": "large"})
    large["start"] = "wider"
    path.write_text(yaml.safe_dump(content))
    loaded = config.load(path)
    for name in (None, "grown", "wider"):
        derived = pilot_of(loaded, growth_of(loaded, name), WANTED)
        _, before, first, second, behind = derived.stages
        assert (first.source, first.model, second.source, second.model) == ("before", "middle", "growth-1", "large")
        assert (before.model, behind.start) == ("small", "growth-2")


def test_the_latest_growth_lies_before_the_decay_by_what_mixing_takes(tmp_path):
    """40 steps, of which the decay takes 6 and mixing 4."""
    loaded = config.load(chain(tmp_path))
    data.prepare(loaded.data, loaded.seed, loaded.path / "data")
    growth = growth_of(loaded, None)
    derived = pilot_of(loaded, growth, WANTED)
    train(derived.path, "full", SMALL, {0: 9.0, 4: 5.0, 8: 4.0, 12: 3.0})
    begun = {"schedule": {"begin": 4, "horizon": 12, "kind": "constant", "peak": 1.0, "warmup": 0}}
    train(derived.path, "behind", SMALL, {0: 7.0, 4: 4.0, 8: 3.0}, **begun)
    found = mixing(loaded, derived, growth, 0.01)
    assert (found.steps, found.horizon, found.decay, found.moved) == (4, 40, 6, True)
    assert found.latest_percent == 100 * (40 - 6 - 4) // 40


def test_losses_that_have_not_moved_tell_nothing(tmp_path):
    loaded = config.load(chain(tmp_path))
    data.prepare(loaded.data, loaded.seed, loaded.path / "data")
    growth = growth_of(loaded, None)
    derived = pilot_of(loaded, growth, WANTED)
    for name, begin in (("full", 0), ("behind", 4)):
        begun = {"schedule": {"begin": begin, "horizon": 12, "kind": "constant", "peak": 1.0, "warmup": 0}}
        train(derived.path, name, SMALL, {0: 2.303, 4: 2.302, 8: 2.301}, **begun)
    found = mixing(loaded, derived, growth, 0.01)
    assert not found.moved
    assert "tells nothing" in next(_words(found))


@pytest.mark.parametrize(
    "plan, stage, reason",
    [
        ({**PLAN, "kind": "cosine", "decay": None}, "grown", "large.schedule.kind: cosine has no constant rate"),
        ({**PLAN, "warmup": "15 steps"}, "grown", "--grow-at: that lies within the warm-up of 15 steps"),
        (PLAN, "growing", "--stage growing: no expansion within one schedule; there are grown"),
    ],
)
def test_what_has_no_pilot_is_refused(tmp_path, capsys, plan, stage, reason):
    plan = {key: value for key, value in plan.items() if value}
    code, _, error = lemon(capsys, "pilot", chain(tmp_path, plan), "--stage", stage)
    assert code == 2 and reason in error and not (tmp_path / "run-pilot-grown-at-10").exists()


def test_a_run_without_one_schedule_is_refused(tmp_path, capsys):
    code, _, error = lemon(capsys, "pilot", tiny_run(tmp_path))
    assert code == 2 and "grows no model within one schedule" in error


def test_one_growth_of_several_must_be_named(tmp_path):
    path = chain(tmp_path)
    content = yaml.safe_load(path.read_text())
    grown, large = (next(s for s in content["stages"] if s["name"] == name) for name in ("grown", "large"))
    content["stages"] += [{**grown, "name": "other"}, {**large, "name": "behind-other", "start": "other"}]
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="has 2 growths; choose one with --stage: grown, other"):
        growth_of(config.load(path), None)


def test_a_run_that_begins_from_a_checkpoint_is_refused(tmp_path):
    path = chain(tmp_path)
    content = yaml.safe_load(path.read_text())
    next(s for s in content["stages"] if s["name"] == "small")["start"] = str(tmp_path)
    path.write_text(yaml.safe_dump(content))
    loaded = config.load(path)
    with pytest.raises(UserError, match=r"stages.small.start: the run begins from a checkpoint, beside which there is"):
        pilot_of(loaded, growth_of(loaded, None), WANTED)
