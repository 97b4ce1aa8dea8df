"""What a study finds in runs with round numbers: savings, intervals, choices, costs that add up, the page."""

import csv
import io
import json
import shutil
from copy import deepcopy
from html import unescape

import pytest

from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder, write_json
from pipeline.studies import choice, figures, findings, page, running, words
from pipeline.studies.composed import tuning
from pipeline.studies.results import Savings, StudyResults
from tests.helpers.invented_runs import LARGE, SETTINGS, expand, train
from tests.helpers.invented_studies import RATE, SEEDS, content, finished, study
from tests.helpers.opened import opened
from tests.helpers.pages import Page


def arm(results: StudyResults, name: str):
    return next(one for one in results.arms if one.name == name)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return findings.found(finished(tmp_path_factory.mktemp("study") / "s"))


def test_savings_are_paired_by_seed(results):
    first, second = arm(results, "lemon").seeds
    assert (first.target, first.given, first.all_in) == (4.0, 150, 210)  # half way from 4.5 at 100 to 3.5 at 200
    assert first.savings.given == pytest.approx(62.5) and first.savings.all_in == pytest.approx(47.5)
    assert (second.target, second.given, second.all_in) == (4.2, 100, 160)
    assert second.savings.given == pytest.approx(75.0) and second.savings.all_in == pytest.approx(60.0)
    given = arm(results, "lemon").given
    assert (given.of, given.reached, given.sample.n) == (2, 2, 2) and given.sample.mean == pytest.approx(68.75)


def test_trials_of_both_sides_are_charged(results):
    """Scratch: two trials of 400; lemon: two of 200 and the small model, 60, once."""
    scratch, lemon = arm(results, "scratch"), arm(results, "lemon")
    assert (scratch.trial_flops, lemon.trial_flops) == (800, 460)
    assert lemon.seeds[0].savings.tuned == pytest.approx(100 * (1200 - 670) / 1200)


def test_what_a_small_model_must_be_used_for(results):
    """60 over the mean of 400 - 150 and 400 - 100."""
    assert arm(results, "lemon").break_even == pytest.approx(60 / 275)
    assert arm(results, "scratch").break_even is None


def test_a_source_that_is_at_the_target_by_itself_is_told(results, tmp_path):
    """Under seed 1 the small model ends at 4.0, which is where scratch ends, under seed 2 at 5.0 of 4.2."""
    assert arm(results, "lemon").source_final.mean == 5.0 and arm(results, "lemon").source_enough == 0
    assert arm(results, "scratch").source_final is None and not list(words.doubts(results))
    losses = deepcopy(SEEDS)
    losses[1]["small"] = {0: 8.0, 20: 4.0}
    told = findings.found(finished(tmp_path / "s", losses))
    assert arm(told, "lemon").source_final.mean == 4.5 and arm(told, "lemon").source_enough == 1
    [doubt] = words.doubts(told)
    assert doubt == (
        "The source of 'lemon' is at the target by itself under 1 of 2 seeds: its saving says that a smaller model "
        "would do."
    )
    assert doubt in page.render(told).replace("&#39;", "'")


def with_a_smaller_arm(folder, losses, seeds=SEEDS, arms=None):
    """The study, and a small model that is trained by itself, 3 FLOPs a step, to the losses that each seed has here."""
    arms = arms or content(folder)["arms"]
    alone = {"kind": "train", "name": "alone", "model": "small", "batch": 4, "schedule": RATE}
    seeds = deepcopy(seeds)
    for seed, held in losses.items():
        seeds[seed]["alone"] = held
    arms["alone"] = {"stages": [alone], "seeds": sorted(losses)}
    return findings.found(finished(folder, seeds, arms=arms, smaller=["alone"]))


def test_a_smaller_model_that_does_without_growing_is_told(tmp_path):
    """At 4.0 after 40 steps of 3 FLOPs, at 4.2 after 36: 70 and 73 % less than scratch's 400; lemon, all-in, saves
    47.5 and 60 %."""
    told = with_a_smaller_arm(tmp_path / "s", {1: {0: 8.0, 40: 4.0}, 2: {0: 8.0, 4: 6.2, 36: 4.2, 40: 4.0}})
    alone = arm(told, "alone")
    assert alone.role == "smaller" and [one.all_in for one in alone.seeds] == [120, 108]
    assert alone.all_in.sample.mean == pytest.approx((70 + 73) / 2) and alone.break_even is None
    [doubt] = words.doubts(told)
    assert doubt.startswith("A smaller model by itself, 'alone', saves 71.5 % (")
    assert doubt.endswith(
        "without any growth. It needs fewer FLOPs, all-in, than 'lemon' under 2 of 2 seeds: where that is so, nothing "
        "needs to be grown for the target alone."
    )
    assert not any("alone" in sentence for sentence in words.statements(told))
    assert f"  note: {doubt}" in page.summary(told, tmp_path / "study.html")
    drawn = unescape(page.render(told))
    assert doubt in drawn and "alone (smaller, not grown)" in drawn
    [(_, marks)] = [row for row in figures.savings(told).rows if row[0] == "alone"]
    assert [mark.label for mark in marks] == ["all-in"], "nothing is given"


@pytest.mark.parametrize(
    "losses, said",
    [
        ({1: {0: 8.0, 40: 5.0}, 2: {0: 8.0, 40: 5.0}}, "reached the target under 0 of 2 seeds."),
        (
            {1: {0: 8.0, 40: 4.0}, 2: {0: 8.0, 40: 5.0}},
            "saves 70.0 % (one seed) without any growth; under 1 of 2 seeds it did not reach the target.",
        ),
    ],
)
def test_a_smaller_model_that_needs_more_is_no_doubt(tmp_path, losses, said):
    told = with_a_smaller_arm(tmp_path / "s", losses)
    assert not list(words.doubts(told))
    assert list(words.statements(told))[-1] == f"A smaller model by itself, 'alone', {said}"


def test_a_smaller_model_is_compared_under_the_seeds_that_both_have(tmp_path):
    """Under seed 2 it saves 40 %, lemon 60; that lemon saves 47.5 % under seed 1 is of no account."""
    told = with_a_smaller_arm(tmp_path / "s", {2: {0: 8.0, 40: 4.3, 80: 4.2}})
    assert arm(told, "alone").all_in.sample.mean == pytest.approx(40.0) and not list(words.doubts(told))


def test_a_smaller_model_at_a_target_that_nothing_grown_reaches_is_a_doubt(tmp_path):
    seeds = deepcopy(SEEDS)
    for held in seeds.values():
        held["lemon"] = {0: 5.0, 20: 4.9}
    told = with_a_smaller_arm(tmp_path / "s", {seed: {0: 8.0, 40: 4.0} for seed in SEEDS}, seeds)
    assert "than 'lemon' under 2 of 2 seeds" in next(words.doubts(told))
    assert next(words.statements(told)) == "Never reached the target: 'lemon' (0 of 2 seeds)."


def test_a_page_without_growth_has_its_figures(tmp_path):
    arms = content(tmp_path)["arms"]
    del arms["lemon"]
    told = with_a_smaller_arm(tmp_path / "s", {seed: {0: 8.0, 40: 4.0} for seed in SEEDS}, arms=arms)
    assert "Every dot is a seed, the diamond their mean" in page.render(told)


def test_what_was_planned_later_stands_by_its_moment(results):
    later = {"half under seed 1": "t1", "lemon under seed 2": "t2", "half under seed 2": "t1"}
    held = results.model_copy(update={"added": later})
    assert list(words.planned_later(held)) == ["half (seeds 1, 2): t1", "lemon (seeds 2): t2"]
    assert "half (seeds 1, 2): t1; lemon (seeds 2): t2." in page.render(held)


def test_arms_look_different(results):
    many = [arm(results, "lemon").model_copy(update={"name": str(number)}) for number in range(10)]
    held = results.model_copy(update={"arms": [*results.arms[:2], *many]})
    assert len(set(figures.looks(held).values())) == 12


def test_equal_flops_lie_between_two_horizons(results):
    """Lemon costs 260 all-in: between half (200, 4.5) and scratch (400, 4.0), in the logarithm of FLOPs."""
    one = arm(results, "lemon").seeds[0]
    assert one.equal.value == pytest.approx(4.5 - 0.5 * 0.3785116, abs=1e-6)  # log(1.3) / log(2)
    assert one.equal.difference == pytest.approx(3.5 - one.equal.value)
    assert one.equal.saving is None  # no horizon of scratch ends at 3.5
    assert arm(results, "half").seeds[0].equal is None


def test_other_targets_are_drawn_up_to_the_claimed_one(results):
    points = arm(results, "lemon").by_target
    assert 4.2 <= points[-1].target < 4.3  # scratch ends at 4.0 and 4.2, and both reach it
    assert all(point.given >= point.all_in for point in points)


def test_rows_of_the_ledger_add_up(results):
    for key in ("training", "everything"):
        parts = [getattr(one, key).flops for one in results.spent]
        assert sum(parts) == getattr(results.whole, key).flops
    assert results.whole.training.flops == 2 * (400 + 200) + 60 + 2 * (400 + 200 + 60 + 200)
    assert [one.run for one in results.spent] == ["tuning", "seed-1", "seed-2"] and not results.unfinished


def test_a_choice_looks_at_the_cost_of_the_target(tmp_path):
    """The baseline's best ends at 4.0; lemon-t2 is there at 100, lemon-t1 at 150, though it ends lower."""
    own = finished(tmp_path / "s")
    tried = choice.judged(own, tuning(own))
    assert [(each.label, each.chosen) for each in tried["scratch"]] == [("scratch-t1", False), ("scratch-t2", True)]
    assert [(each.at_target, each.chosen) for each in tried["lemon"]] == [(210, False), (160, True)]
    assert choice.recorded(own) == {
        "scratch": {"large.schedule.peak": 2.0e-3},
        "lemon": {"large.schedule.peak": 2.0e-3},
    }


def test_a_trial_has_to_pass_the_target_by_the_margin(tmp_path):
    """lemon-t1 ends at 3.5, lemon-t2, which is at 4.0 sooner, at 3.75."""
    for margin, chosen in ((0.1, [False, True]), (0.3, [True, False]), (0.6, [True, False])):
        own = finished(tmp_path / str(margin), tuning={"trials": 2, "seed": 9, "margin": margin})
        tried = choice.judged(own, tuning(own))["lemon"]
        assert [each.chosen for each in tried] == chosen, margin
        assert (tried[0].at_target is None) == (margin == 0.6)
        told = findings.found(own)
        assert any(f"bettered by {margin:g}" in sentence for sentence in words.rule(told))
        assert f"all-in FLOPs at the target, bettered by {margin:g}" in page.render(told)


def test_a_seed_that_does_not_reach_the_target_is_told_and_never_guessed(tmp_path):
    seeds = deepcopy(SEEDS)
    seeds[2]["lemon"] = {0: 5.0, 10: 4.5, 20: 4.4}
    found = findings.found(finished(tmp_path / "s", seeds))
    lemon = arm(found, "lemon")
    assert (lemon.given.of, lemon.given.reached) == (2, 1)
    assert lemon.seeds[1].given is lemon.seeds[1].savings.all_in is None
    assert "under 1 of 2 seeds it did not reach the target" in words.statement(lemon)
    assert words.saved(lemon.all_in) == "47.5 % (one seed)" and "1 of 2 seeds" in page.render(found)
    assert "not reached" in page.render(found)


def again(folder, losses, **facts):
    """A stage of an invented run, trained to other losses."""
    small = StageFolder(folder).facts
    shutil.rmtree(folder)
    train(folder.parent, folder.name, LARGE, losses, origin=small.origin, **facts)


def test_a_source_that_is_not_recorded_is_not_free(tmp_path):
    own = finished(tmp_path / "s")
    for seed in own.seeds:
        expand(tmp_path / "s" / f"seed-{seed}", "lemon-grown", str(tmp_path), LARGE)
    lemon = arm(found := findings.found(own), "lemon")
    assert lemon.given.sample.mean == pytest.approx(68.75)
    assert lemon.all_in.sample is lemon.tuned.sample is lemon.equal is lemon.break_even is None
    assert lemon.seeds[0].source is lemon.seeds[0].seconds is None and lemon.seeds[0].unknown == str(tmp_path)
    assert f"an unknown share all-in (the training of {tmp_path} is not recorded)" in words.statement(lemon)
    assert "not recorded" in page.render(found)


def test_what_has_not_ended_counts_in_no_mean(tmp_path):
    own = finished(tmp_path / "s")
    again(tmp_path / "s" / "seed-2" / "lemon", {0: 5.0, 2: 3.0}, finished=False, steps=20)
    found = findings.found(own)
    lemon = arm(found, "lemon")
    assert (lemon.given.of, lemon.given.reached, lemon.final.n, lemon.equal.n) == (1, 1, 1, 1)
    assert not lemon.seeds[1].complete and lemon.seeds[1].savings == Savings()
    assert "lemon (not ended)" in page.render(found) and "seed-2/lemon" in found.unfinished
    again(tmp_path / "s" / "seed-2" / "scratch", {0: 8.0, 20: 6.0}, finished=False, steps=40)
    assert arm(findings.found(own), "scratch").final.n == 1


def test_a_baseline_that_misses_the_target_is_told(tmp_path):
    """Scratch ends at 4.0 and 4.2; lemon is at 3.95 under both."""
    found = findings.found(finished(tmp_path / "s", target=3.95))
    lemon = arm(found, "lemon")
    assert (lemon.given.reached, lemon.given.scratch) == (2, 0)
    assert words.statement(lemon) == "'lemon' reached the target under 2 of 2 seeds, the baseline under none of them."
    assert words.saved(lemon.given) == "–"


def test_an_untuned_arm_has_no_saving_with_tuning(tmp_path):
    arms = content(tmp_path)["arms"]
    arms["lemon"]["tune"] = {}
    lemon = arm(findings.found(finished(tmp_path / "s", arms=arms)), "lemon")
    assert lemon.trial_flops == 0 and lemon.tuned.sample is None and lemon.given.sample.n == 2


def test_other_settings_and_machines_are_told(tmp_path):
    own = finished(tmp_path / "s")
    other = {**SETTINGS, "batch": 64, "precision": "bf16", "world_size": 8}
    again(tmp_path / "s" / "seed-1" / "lemon", SEEDS[1]["lemon"], settings=other, device="H100")
    found = findings.found(own)
    lemon = arm(found, "lemon")
    assert "batch 64, not 4" in lemon.remarks[0] and "precision bf16, not fp32" in lemon.remarks[0]
    assert lemon.seeds[0].savings.time is None and lemon.seeds[1].savings.time is not None
    assert lemon.machines == ["2 x CPU <x86>", "8 x H100"] and "batch 64, not 4" in page.render(found)


def test_a_horizon_that_was_cut_is_no_horizon(tmp_path):
    own = finished(tmp_path / "s")
    schedule = {"kind": "cosine", "peak": 1e-3, "warmup": 2, "steps": 20, "horizon": 40}
    again(tmp_path / "s" / "seed-1" / "half", SEEDS[1]["half"], schedule=schedule, steps=20)
    lemon = arm(findings.found(own), "lemon")
    assert lemon.seeds[0].equal is None and lemon.seeds[1].equal is not None


def test_seconds_of_a_fit_count(tmp_path):
    """Half a second a step: 20 of the small model, 15 of lemon's until the target, and 10 of the fit."""
    own = finished(tmp_path / "s")
    before = arm(findings.found(own), "lemon").seeds[0].seconds
    train(tmp_path / "s" / "seed-1", "lemon-grown-fit", LARGE, {0: 5.0, 10: 4.9}, kind="fit")
    assert arm(findings.found(own), "lemon").seeds[0].seconds == pytest.approx(before + 5.0) == pytest.approx(22.5)


def test_what_is_planned_no_more_is_named_and_stays_charged(tmp_path):
    own = finished(tmp_path / "s")
    whole = findings.found(own).whole
    arms = content(tmp_path / "s")["arms"]
    del arms["lemon"]
    found = findings.found(study(tmp_path / "s", arms=arms, seeds=[2]))
    assert "lemon under seed 2" in found.dropped and "scratch under seed 1" in found.dropped
    assert found.whole == whole and "Planned once, and no longer shown" in page.render(found)


def test_trials_alone_are_shown_while_tuning(tmp_path):
    found = findings.found(finished(tmp_path / "s", {}))
    assert not arm(found, "scratch").seeds and len(arm(found, "scratch").trials) == 2
    assert "scratch-t2" in page.render(found) and page.table(found).startswith("arm,seed,complete")


def test_a_trial_that_broke_down_is_the_worst_and_charged(tmp_path):
    own = finished(tmp_path / "s")
    write_json(tmp_path / "s" / running.BROKEN, {"lemon-t2": "loss not a number"})
    (tmp_path / "s" / choice.FILE).unlink()
    choice.fix(own, running.tuned_run(own))
    assert choice.recorded(own)["lemon"] == {"large.schedule.peak": 1.0e-3}
    found = findings.found(own)
    lemon = arm(found, "lemon")
    assert [(each.final, each.chosen) for each in lemon.trials] == [(3.5, True), (None, False)]
    assert lemon.trial_flops == 460 and "Trial lemon-t2 has broken down" in page.render(found)


def test_a_target_of_ones_own(tmp_path):
    found = findings.found(finished(tmp_path / "s", target=4.4))
    first, _ = arm(found, "lemon").seeds
    assert first.target == 4.4 and first.given == 110
    assert arm(found, "scratch").seeds[0].given == 320


def test_what_is_missing_is_told(tmp_path):
    found = findings.found(finished(tmp_path / "s", {1: SEEDS[1]}))
    assert [one.seed for one in arm(found, "lemon").seeds] == [1]
    assert "seed-2/scratch" in found.unfinished and "Unfinished: " in page.render(found)


def test_nothing_yet(tmp_path):
    with pytest.raises(UserError, match="nothing of the baseline 'scratch' is measured yet; run the study first"):
        findings.found(study(tmp_path / "s"))


def test_files_hold_everything(results, tmp_path):
    place = page.write(results, tmp_path)
    held = json.loads((tmp_path / "study.json").read_text())
    assert StudyResults.model_validate(held) == results and held["format"] == 1
    rows = list(csv.DictReader(io.StringIO((tmp_path / "study.csv").read_text())))
    assert [(row["arm"], row["seed"]) for row in rows] == [
        (name, seed) for name in ("scratch", "half", "lemon") for seed in ("1", "2")
    ]
    assert rows[4]["given"] == "150" and float(rows[4]["saved_all_in_percent"]) == pytest.approx(47.5)
    found = Page(place.read_text())
    assert not found.unclosed and not found.crossed and "62.5 %" in found.words
    for outside in ("http://", "https://", "@import", "url(", "<script", "<link"):
        assert outside not in place.read_text()


def test_the_page_is_the_same_every_time(results):
    assert page.render(results) == page.render(results)


def test_records_are_read_once(tmp_path):
    own = finished(tmp_path / "s")
    with opened() as counts:
        findings.found(own)
    ledgers = {path: count for path, count in counts.items() if path.name == "ledger.jsonl"}
    assert ledgers and set(ledgers.values()) <= {1, 2}  # the choice reads those of the trials for itself
