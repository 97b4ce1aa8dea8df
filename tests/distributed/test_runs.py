"""A whole run through the command line: what it leaves, what may change when it goes on, what it refuses."""

import json

import pytest

from tests.helpers import cli
from tests.helpers.runs import STEPS, copied, interrupted, ledger, records, tiny_run


def test_the_chain_ends_with_a_report(finished):
    run = finished / "run"
    assert {"config.yaml", "report.html", "report.json", "data", "small", "grown", "large", "scratch"} <= {
        p.name for p in run.iterdir()
    }
    assert [r["step"] for r in records(run, "small") if "loss" in r] == list(range(1, STEPS + 1))
    assert [r["step"] for r in records(run, "large") if "eval_loss" in r] == [0, 8, STEPS // 2]
    manifest = json.loads((run / "large/checkpoints/step-0000012/manifest.json").read_text())
    assert (manifest["zero_stage"], manifest["world_size"]) == (1, 2)
    spent = {stage: sum(e["flops"] for e in ledger(run, stage)) for stage in ("small", "grown", "large")}
    assert manifest["provenance"]["flops"] == sum(spent.values())


def test_records_say_what_each_part_took(finished):
    run = finished / "run"
    for stage in ("small", "large", "scratch"):
        steps, evaluations, saves = (
            [r for r in records(run, stage) if key in r] for key in ("loss", "eval_loss", "save_seconds")
        )
        assert all(r["window"] == 1 and r["seconds"] > 0 and 0 < r["mfu"] <= 1 for r in steps)
        assert all(r["evaluation_seconds"] > 0 for r in evaluations)
        assert [r["step"] for r in saves] == [s for s in range(1, len(steps) + 1) if s % 5 == 0 or s == len(steps)]
        assert "MFU counts from a peak of" in (run / stage / "log.txt").read_text()


def test_tensorboard_on_request(finished):
    pytest.importorskip("tensorboard")
    assert list((finished / "run" / "small" / "tensorboard").glob("events.*"))
    assert not (finished / "run" / "large" / "tensorboard").exists()


def test_the_expanded_run_starts_where_the_small_one_ended(finished):
    small = [r["eval_loss"] for r in records(finished / "run", "small") if "eval_loss" in r][-1]
    large = next(r["eval_loss"] for r in records(finished / "run", "large") if "eval_loss" in r)
    assert large == pytest.approx(small, abs=1e-4)
    fresh = next(r["eval_loss"] for r in records(finished / "run", "scratch") if "eval_loss" in r)
    assert abs(fresh - small) > 1e-2


def test_finished_stages_are_skipped(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in (finished / "run").rglob("metrics.jsonl")}
    code, said, _ = cli.lemon(capsys, "run", finished / "tiny.yaml")
    assert code == 0 and said.count("finished already, skipped") == 4
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "run").rglob("metrics.jsonl")}


def test_other_settings_do_not_continue_a_run(finished, capsys):
    code, _, error = cli.lemon(capsys, "run", finished / "tiny.yaml", "stages.small.schedule.peak=0.5")
    assert code == 2 and error.count("\n") == 1
    assert "small: begun with other settings: stage.schedule.peak was 0.001, is now 0.5; " in error
    assert "take another folder (folder=…)" in error


def test_a_run_goes_on_with_other_memory_and_cadence(finished, tmp_path):
    """As after an out-of-memory error, and with a record that lacks a key which the schema has got since. The losses
    are means of those that were recorded step by step; activation checkpointing computes the same numbers again."""
    path, run = interrupted(finished, tmp_path, "small", 20), tmp_path / "run"
    facts = json.loads((run / "small" / "stage.json").read_text())
    del facts["fingerprint"]["stage"]["precision"]
    (run / "small" / "stage.json").write_text(json.dumps(facts))
    changes = {
        "save_every": "7 steps",
        "evaluate_every": "6 steps",
        "log_every": "3",
        "activation_checkpointing": "true",
    }
    cli.lemon_here(
        "train", path, "--stage", "small", *(f"stages.small.{key}={value}" for key, value in changes.items())
    )
    expected = {r["step"]: r["loss"] for r in records(finished / "run", "small") if "loss" in r}
    found = [r for r in records(run, "small") if "loss" in r]
    assert sum(r["window"] for r in found) == STEPS and any(r["window"] == 3 for r in found)
    for record in found:
        steps = range(record["step"] - record["window"] + 1, record["step"] + 1)
        assert record["loss"] == pytest.approx(sum(expected[step] for step in steps) / len(steps), rel=1e-12)
    facts = json.loads((run / "small" / "stage.json").read_text())
    assert facts["settings"]["activation_checkpointing"] and facts["flops_per_step"]["recompute"] > 0
    begun = [(each["step"], each["settings"]["activation_checkpointing"]) for each in facts["starts"]]
    assert begun == [(0, False), (20, True)]
    assert facts["fingerprint"]["stage"]["precision"] == "fp32"


def test_divergence_is_told_in_one_line(finished, tmp_path, capfd):
    path = copied(finished, tmp_path)
    settings = ("processes=1", "stages.small.schedule.peak=1e30", "stages.small.optimizer.clip=0")
    code, _, error = cli.lemon(capfd, "train", path, "--stage", "small", *settings)
    assert code == 2 and "lower schedule.peak" in error and "Traceback" not in error


BAD = [
    (["stages.scratch.batch=15"], "stages.scratch: batch 15 is not a multiple of micro_batch 7 x 2 ranks"),
    (["stages.grown.method=stack"], "stages.grown: method 'stack' cannot grow this model: 'stack' grows in depth only"),
    (["stages.small.batch=15"], "stages.small: batch 15 is not a multiple of micro_batch 7 x 2 ranks"),
    (["data.dataset=/nowhere/at/all"], "/nowhere/at/all"),
    (
        ["models.small.patch=3"],
        "models.small: model family 'vit' needs a patch size that divides the image size 8, got 3",
    ),
    (["models.small.family=vitt"], "models.small: unknown model family 'vitt'; did you mean 'vit'?"),
    (["models.large.kv_heads=1"], "models.large: models of family 'vit' have no kv_heads, got 1; remove it"),
    (["stages.grown.fit={steps: 3}"], "stages.grown.fit: method 'lemon' learns nothing; leave the key out"),
    (
        ["stages.grown.method=ligo", "stages.scratch.name=grown-fit"],
        "stages.grown-fit: the fit of 'grown' has that name; choose another",
    ),
    (
        ["stages.grown.method=ligo", "stages.large.start=null"],
        "stages.grown.fit.batch: no training stage behind it says how many; name the batch",
    ),
    (["stages.grown.method=ligo", "stages.grown.fit={batch: 15}"], "stages.grown-fit: batch 15 is not a multiple of "),
    (["stages.grown.method={name: ligo, maps: tied}"], "width_init 'lossless' needs maps 'untied'"),
    (["stages.large.schedule.warmup=90 epochs"], "stages.large.schedule: the warm-up of "),
]


@pytest.mark.parametrize("overrides, complaint", BAD, ids=[b[1][:40] for b in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, overrides, complaint):
    code, _, error = cli.lemon(capsys, "run", tiny_run(tmp_path), *overrides)
    assert code == 2 and complaint in error and error.count("\n") == 1
    assert not any((tmp_path / "run").glob("*/stage.json"))
