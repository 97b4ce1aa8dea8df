"""The keys of a fit, the stage that follows from them, and what its cost does to the savings."""

import json
from itertools import pairwise

import pytest

from pipeline import config
from pipeline.config.fit import PUBLISHED_WARMUP, FitChoice
from pipeline.config.schema import Config, FitStage
from pipeline.durations import Pace
from pipeline.errors import UserError
from pipeline.report import build
from tests.helpers.invented_runs import LARGE, LARGE_LOSS, SCRATCH_LOSS, SMALL, expand, make_run, spend, train
from tests.helpers.runs import tiny_run

PACE = Pace(samples=4, tokens=4, flops=4, samples_per_epoch=100)


def rates(tmp_path, *overrides: str) -> list[float]:
    stage = loaded(tmp_path, *overrides).training_stage("grown-fit")
    plan = stage.schedule.resolve(PACE)
    return [plan.at(step) for step in range(plan.steps)]


def loaded(tmp_path, *overrides: str) -> Config:
    return config.load(tiny_run(tmp_path), ["stages.grown.method=ligo", *overrides])


def test_the_stage_of_a_fit_takes_what_is_open_from_the_one_behind(tmp_path):
    fit = loaded(tmp_path, "stages.grown.fit={micro_batch: 4}").training_stage("grown-fit")
    assert isinstance(fit, FitStage) and (fit.batch, fit.micro_batch, fit.precision) == (16, 4, "fp32")
    assert fit.origin == "small" and fit.start is None and fit.model == "large" and fit.activation_checkpointing
    assert fit.optimizer.weight_decay == 0 and fit.dropout == 0


def test_the_number_formats_of_a_fit_are_those_of_the_stage_behind(tmp_path):
    values = {"precision": "bf16", "gradient_sums": "bf16", "matmul_precision": "medium"}
    behind = [f"stages.large.{key}={value}" for key, value in values.items()]
    fit = loaded(tmp_path, *behind).training_stage("grown-fit")
    assert (fit.precision, fit.sums, fit.products) == ("bf16", "bf16", "medium")
    own = "stages.grown.fit={precision: fp32, matmul_precision: high}"
    fit = loaded(tmp_path, *behind, own).training_stage("grown-fit")
    assert (fit.precision, fit.sums, fit.products) == ("fp32", None, "high")
    fit = loaded(tmp_path).training_stage("grown-fit")
    assert (fit.precision, fit.sums, fit.products) == ("fp32", None, "highest")


def test_a_fit_computes_as_the_stage_behind_unless_it_says_otherwise(tmp_path):
    behind = ("stages.large.attention=eager", "stages.large.compile=true")
    fit = loaded(tmp_path, *behind).training_stage("grown-fit")
    assert (fit.attention, fit.compile) == ("eager", True)
    own = loaded(tmp_path, *behind, "stages.grown.fit={attention: sdpa, compile: false}").training_stage("grown-fit")
    assert (own.attention, own.compile) == ("sdpa", False)


def test_the_published_recipe_sees_the_first_hundredth_of_its_warmup(tmp_path):
    found = rates(tmp_path, "stages.grown.fit={preset: published}")
    assert found == pytest.approx([2e-4 * step / PUBLISHED_WARMUP for step in range(100)], abs=1e-18)
    chosen = FitChoice.model_validate({"preset": "published"})
    assert chosen.dropout is None and chosen.optimizer.weight_decay == 0.1 and chosen.optimizer.eps == 1e-6


def test_what_is_given_beside_a_preset_counts():
    chosen = FitChoice.model_validate({"preset": "published", "peak": 1e-2, "warmup": 0, "dropout": 0.2})
    assert (chosen.peak, chosen.warmup, chosen.dropout, chosen.decay) == (1e-2, 0, 0.2, "linear")


def test_an_optimizers_keys_are_given_one_by_one():
    """The others stay the preset's."""
    ours, theirs = (
        FitChoice.model_validate({"preset": p, "optimizer": {"clip": 0.5}}) for p in ("default", "published")
    )
    assert (ours.optimizer.weight_decay, ours.optimizer.clip) == (0.0, 0.5)
    assert (theirs.optimizer.weight_decay, theirs.optimizer.eps, theirs.optimizer.clip) == (0.1, 1e-6, 0.5)


def test_a_stage_of_that_name_is_the_users_own_where_nothing_is_learned(tmp_path):
    named = config.load(tiny_run(tmp_path), ["stages.scratch.name=grown-fit"])
    assert named.training_stage("grown-fit").zero_stage == 3


@pytest.mark.parametrize("steps", [2, 10, 11, 50])
def test_a_warmup_is_cut_to_the_steps(tmp_path, steps):
    """The rates of the steps that are taken are those of the whole warm-up."""
    found = rates(tmp_path, f"stages.grown.fit={{steps: {steps}, warmup: 10, peak: 1.0e-3}}")
    assert len(found) == steps
    assert found[: min(10, steps)] == pytest.approx([1e-4 * step for step in range(min(10, steps))], abs=1e-18)


def test_a_single_step_of_a_warmup_moves_nothing_and_is_refused(tmp_path):
    with pytest.raises(UserError, match="steps 1 has rate 0, the first of a warm-up of 10 steps; choose warmup 0"):
        loaded(tmp_path, "stages.grown.fit={steps: 1}")
    assert rates(tmp_path, "stages.grown.fit={steps: 1, warmup: 0, peak: 0.5}") == [0.5]


@pytest.mark.parametrize("keys", ["zero_optimization: {stage3_prefetch_bucket_size: 5}", "fp16: {loss_scale: 8}"])
def test_keys_of_deepspeed_without_effect_are_refused(tmp_path, keys):
    with pytest.raises(UserError, match=r"stages.grown.fit.*deepspeed"):
        loaded(tmp_path, f"stages.grown.fit.deepspeed={{{keys}}}")


@pytest.mark.parametrize("inherited", [False, True])
def test_nor_are_those_that_bf16_leaves_without_effect(tmp_path, inherited):
    """Named, or of the stage behind it: sums in float32 are reduced without buckets."""
    precision = "stages.large.precision=bf16" if inherited else "stages.grown.fit.precision=bf16"
    bucket = "stages.grown.fit.deepspeed={zero_optimization: {reduce_bucket_size: 1000000}}"
    run = loaded(tmp_path, precision, bucket)
    with pytest.raises(UserError, match=r"stages.grown.fit: deepspeed.*reduce_bucket_size is without effect"):
        run.training_stage("grown-fit")


def test_without_a_batch_nothing_is_guessed(tmp_path):
    path = tiny_run(tmp_path)
    alone = config.load(path, ["stages.grown.method=ligo", "stages.large.start=null"])
    with pytest.raises(UserError, match=r"stages.grown.fit.batch: no training stage behind it says how many"):
        alone.training_stage("grown-fit")


def fitted_run(folder, growths=("grown",)):
    """small (60 FLOPs) -> fit (20 steps of 9, of them 2 recomputed and 3 to make weights) -> large; scratch. growths:
    expansions in a row, of which the first is fitted."""
    expansions = dict.fromkeys(growths, "expand")
    run = make_run(folder, {"small": "train", **expansions, "large": "train", "scratch": "train"})
    train(run, "small", SMALL, {0: 8.0, 20: 5.0}, flops=3)
    per_step = {"train": 4, "recompute": 2, "make": 3}
    losses = {0: 6.0, 20: 5.0}
    fit = train(
        run, "grown-fit", LARGE, losses, origin="small", flops=4, recompute=2, kind="fit", flops_per_step=per_step
    )
    for step in range(1, 21):
        spend(fit, step, "make", 3)
    expand(run, "grown", "small", LARGE, method="ligo", fit={"steps": 20, "flops": 194, "training_flops": 180})
    for before, after in pairwise(growths):
        expand(run, after, before, LARGE)
    train(run, "large", LARGE, LARGE_LOSS, origin=growths[-1], flops=8, recompute=2)
    train(run, "scratch", LARGE, SCRATCH_LOSS)
    return run


def test_another_expansion_behind_it_does_not_hide_a_fit(tmp_path):
    (one,) = build([fitted_run(tmp_path / "run", ("grown", "wider"))]).runs[0].comparisons
    assert one.expansion.stage == "wider" and one.expansion.fit_flops == 180
    assert one.curves.expanded[0].flops == 180 and one.source.flops == 60


def test_a_fit_is_charged_in_both_savings(tmp_path):
    """By what stage.json of the expansion says, whatever has become of its checkpoints."""
    run = build([fitted_run(tmp_path / "run")]).runs[0]
    (one,) = run.comparisons
    assert one.expansion.fit_flops == 180 and one.curves.expanded[0].flops == 180
    assert one.all_in.flops == one.given.flops + 60 and one.source.flops == 60
    rows = {(row.stage, row.kind): row.flops for row in run.ledger.rows}
    assert [rows["grown-fit", kind] for kind in ("train", "recompute", "make")] == [80, 40, 60]
    assert [stage.stage for stage in run.stages] == ["small", "grown-fit", "grown", "large", "scratch"]


def test_a_line_of_a_fits_ledger_that_is_lost_is_missed(tmp_path):
    folder = fitted_run(tmp_path / "run")
    path = folder / "grown-fit" / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = [{**line, "flops": 2} if line["kind"] == "make" else line for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    with pytest.raises(UserError, match="making of weights until step 1 has 2 FLOPs, its steps cost 3"):
        build([folder])
