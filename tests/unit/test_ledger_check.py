"""A report that adds up: every ledger is held against FLOPs of a step times steps."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.records.stage_facts import StepFlops
from pipeline.report import build
from tests.helpers.invented_runs import LARGE, LARGE_LOSS, make_run, simple_run, spend, train


def edited(change):
    def edit(lines: list[dict]) -> list[dict]:
        return [change(line) if line["kind"] == "train" and line["step"] == 20 else line for line in lines]

    return edit


DAMAGE = {
    "the tail is lost": (lambda lines: lines[:-5], "its training ends at step 18, that of the stage at step 20"),
    "everything is lost": (lambda lines: [], "its training ends at step 0, that of the stage at step 20"),
    "a line is lost": (
        lambda lines: [line for line in lines if line["step"] != 7],
        "training until step 8 has 8 FLOPs",
    ),
    "a line is doubled": (lambda lines: [*lines[:4], lines[3], *lines[4:]], "follows step"),
    "other FLOPs": (edited(lambda line: {**line, "flops": 4}), "until step 20 has 4 FLOPs, its steps cost 8"),
    "less was recomputed": (
        lambda lines: [{**line, "flops": 0} if line["kind"] == "recompute" else line for line in lines],
        "recomputation until step 1 has 0 FLOPs, its steps cost 2",
    ),
    "cheap evaluations": (
        lambda lines: [{**line, "flops": 1} if line["kind"] == "evaluate" and line["step"] else line for line in lines],
        "evaluations of the same data have different FLOPs",
    ),
}


@pytest.mark.parametrize("damage, complaint", DAMAGE.values(), ids=DAMAGE)
def test_what_does_not_add_up_is_refused(tmp_path, damage, complaint):
    run = simple_run(tmp_path / "run")
    path = run / "large" / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in damage(lines)))
    with pytest.raises(UserError, match=complaint) as caught:
        build([run])
    assert str(caught.value).startswith(f"{path}: ") and "restore the file" in str(caught.value)


def test_no_cost_is_negative(tmp_path):
    run = simple_run(tmp_path / "run")
    path = run / "large" / "ledger.jsonl"
    path.write_text(path.read_text().replace('"flops": 8', '"flops": -8'))
    with pytest.raises(UserError, match=r"ledger.jsonl, line \d+: not a record of a stage \(flops: .*greater than or"):
        build([run])


def test_a_stage_that_still_runs_may_end_anywhere(tmp_path):
    run = simple_run(tmp_path / "run", finished=False, steps=30)
    assert build([run]).runs[0].stages


def test_what_a_step_costs_is_told_by_the_start_that_made_it(tmp_path):
    """Activation checkpointing was switched off at step 10: 2 FLOPs a step more before, none behind it."""
    run = make_run(tmp_path / "run", {"large": "train"})
    stage = train(run, "large", LARGE, LARGE_LOSS, recompute=2)
    lines = stage.ledger.path.read_text().splitlines(keepends=True)
    facts, last = stage.facts, lambda line: json.loads(line)["step"] > 10
    cheaper = facts.starts[0].model_copy(update={"step": 10, "flops_per_step": StepFlops(train=10, recompute=0)})
    stage.finish(facts.model_copy(update={"starts": (*facts.starts, cheaper)}))
    with pytest.raises(UserError, match="recomputation until step 11 has 2 FLOPs, its steps cost 0;"):
        build([run])
    stage.ledger.path.write_text("".join(line for line in lines if not (last(line) and '"recompute"' in line)))
    assert build([run]).runs[0].stages


def test_what_was_lost_may_have_cost_anything(tmp_path):
    """Steps 6 to 20 were made with activation checkpointing, then lost to a start from step 5 without it."""
    run = make_run(tmp_path / "run", {"large": "train"})
    stage = train(run, "large", LARGE, LARGE_LOSS, recompute=2, finished=False)
    facts = stage.facts
    cheaper = facts.starts[0].model_copy(update={"step": 5, "flops_per_step": StepFlops(train=10, recompute=0)})
    stage.begin(facts.model_copy(update={"starts": (*facts.starts, cheaper)}))
    stage.ledger.restart(5)
    for step in range(6, 21):
        spend(stage, step, "train", 10, 4, 32)
    stage.finish(stage.facts)
    spent = build([run]).runs[0].ledger.by_kind
    assert (spent["train"].flops, spent["recompute"].flops, spent["lost"].samples) == (200, 10, 4 * 15 + 2 * 16)
