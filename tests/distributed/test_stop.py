"""Stages that end at a target, and go on beyond it."""

import json

from pipeline import config
from pipeline.training.start import origin
from tests.helpers.cli import lemon_here
from tests.helpers.runs import copied, ledger, losses, records, steps_in_all


def facts(run) -> dict:
    return json.loads((run / "small" / "stage.json").read_text())


def test_a_stage_ends_at_its_target_and_goes_on_beyond_it(finished, tmp_path):
    """The target is the loss that the undisturbed stage has at step 8; it goes on as that one did."""
    path, run = copied(finished, tmp_path), tmp_path / "run"
    whole = finished / "run"
    loss = next(r["eval_loss"] for r in records(whole, "small") if r["step"] == 8 and "eval_loss" in r)
    stop = f"stages.small.stop={{eval_loss: {loss!r}}}"
    lemon_here("train", path, "--stage", "small", stop)
    reached = facts(run)["reached"]
    assert (facts(run)["status"], facts(run)["steps"], reached["step"], reached["value"]) == ("finished", 24, 8, loss)
    assert reached["flops"] == 8 * facts(run)["flops_per_step"]["train"]
    assert losses(run, "small") == [each for each in losses(whole, "small") if each[0] <= 8]
    assert origin(config.load(path, [stop]), "small").name == "step-0000008"
    assert (
        f"ended at step 8 of 24: evaluation loss {loss:.4f} reached its target" in (run / "small/log.txt").read_text()
    )

    killed_before_it_said_so = {**facts(run), "status": "running", "reached": None}
    (run / "small" / "stage.json").write_text(json.dumps(killed_before_it_said_so))
    lemon_here("train", path, "--stage", "small", stop)
    assert facts(run)["reached"] == reached and steps_in_all(run, "small") == 8

    lemon_here("train", path, "--stage", "small", "stages.small.stop=null")
    assert facts(run)["reached"] is None and facts(run)["status"] == "finished"
    assert losses(run, "small") == losses(whole, "small")
    assert ledger(run, "small") == ledger(whole, "small")


def test_a_stage_ends_at_its_share_of_right_answers(finished, tmp_path):
    """The best of the undisturbed stage, at the step where that one had it first."""
    evaluated = [(r["top1"], -r["step"]) for r in records(finished / "run", "small") if "eval_loss" in r]
    top1, step = max(evaluated)
    lemon_here("train", copied(finished, tmp_path), "--stage", "small", f"stages.small.stop={{top1: {top1!r}}}")
    reached = facts(tmp_path / "run")["reached"]
    assert (reached["measure"], reached["step"], reached["value"]) == ("top1", -step, top1)
    assert losses(tmp_path / "run", "small")[-1][0] == -step


def test_a_finished_stage_that_is_prolonged_equals_one_of_that_length(finished, tmp_path):
    """Behind the horizon the rate stays at its minimum."""
    longer = "stages.small.schedule.steps=32 steps"
    prolonged, whole = (folder / "run" for folder in (tmp_path / "prolonged", tmp_path / "whole"))
    for run, stages in ((prolonged, ["small"]), (whole, [])):
        run.parent.mkdir()
        lemon_here("train", copied(finished, run.parent, *stages), "--stage", "small", longer)
    assert losses(whole, "small")[: 24 + 4] == losses(finished / "run", "small")[: 24 + 4], (
        "but for the end of that one"
    )
    assert trained(prolonged) == trained(whole) and len(trained(whole)) == 32
    assert [rate for _, _, rate in trained(whole)[24:]] == [1e-4] * 8
    assert shards(prolonged) == shards(whole)
    assert (facts(prolonged)["steps"], facts(prolonged)["schedule"]["horizon"]) == (32, 24)
    assert [start["step"] for start in facts(prolonged)["starts"]] == [0, 24]


def trained(run) -> list[tuple]:
    return [(record["step"], record["loss"], record["lr"]) for record in records(run, "small") if "loss" in record]


def shards(run) -> dict:
    """What the files of the last checkpoint are, by their hashes."""
    return json.loads((run / "small/checkpoints/step-0000032/manifest.json").read_text())["files"]
