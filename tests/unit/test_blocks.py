"""Stages that read the same text in blocks of other lengths."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import transformers

from pipeline import config, data, models
from pipeline.accounting.flops import cost
from pipeline.errors import UserError
from pipeline.records.data_position import DataPosition
from pipeline.report import build, summary
from pipeline.runs import preflight
from pipeline.training.fingerprint import Fingerprint, require_same
from pipeline.training.stage import plan_training
from tests.helpers.cli import lemon
from tests.helpers.invented_runs import LARGE, SETTINGS, SMALL, expand, make_run, train
from tests.helpers.runs import tiny_run
from tests.helpers.text_run import BLOCK, LONG, text_run


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """The config of a run whose data are prepared."""
    path = text_run(tmp_path_factory.mktemp("blocks"))
    loaded = config.load(path)
    data.prepare(loaded.data, loaded.seed, loaded.path / "data")
    return path


def read(path: Path, stage: str, *overrides: str) -> data.Prepared:
    loaded = config.load(path, overrides)
    return data.data_of(loaded, loaded.stage(stage))


@pytest.mark.parametrize("window, refused", [(BLOCK + 2, True), (LONG, False)])
def test_a_mask_of_documents_takes_the_place_of_no_window(path, window, refused):
    """Of the stage's own block, which is longer than the run's."""
    loaded = config.load(path, ["data.cross_document=false"])
    model = transformers.MistralConfig(sliding_window=window, num_hidden_layers=1)
    with pytest.raises(UserError, match=f"fewer than a block's {LONG}") if refused else nullcontext():
        preflight._require_mask_of_documents(loaded, loaded.stage("long"), model)


def test_other_blocks_are_the_same_ids_cut_elsewhere(path):
    short, long = read(path, "short"), read(path, "long")
    for split in ("training", "evaluation"):
        ids, rows = (prepared.samples().rows[split] for prepared in (short, long))
        assert rows.shape == (ids.size // (LONG - 2), LONG - 2) == (long.facts[split], LONG - 2)
        assert np.array_equal(rows.ravel(), ids.ravel()[: rows.size])
        assert ids.size - rows.size < LONG - 2
    inputs, labels = long.samples().train(0, np.array([0]), np.array([3]))
    assert inputs["input_ids"].shape == (1, LONG)
    assert labels.shape == (1, long.facts["scored"]) == (1, round(0.15 * (LONG - 2)))
    assert (long.size, long.facts["tokens_per_sample"]) == (long.facts["training"], LONG)


def test_a_stage_with_the_block_of_the_data_reads_what_is_prepared(path):
    facts = data.open_prepared(config.load(path).path / "data").facts
    for prepared in (read(path, "short"), read(path, "short", f"stages.short.data.block={BLOCK}")):
        assert prepared.facts == {**facts, "positions": LONG}


def test_models_have_positions_for_the_longest_block_and_steps_cost_what_their_block_does(path):
    loaded = config.load(path)
    plans = {name: plan_training(loaded, loaded.training_stage(name)) for name in ("short", "whole")}
    assert {plan.model.max_position_embeddings for plan in plans.values()} == {LONG}
    for name, block in (("short", BLOCK), ("whole", LONG)):
        plan = plans[name]
        positions = {"token": block, "scored": max(1, round(0.15 * (block - 2))), "sequence": 1}
        price = cost(models.architecture_of(plan.model), positions, drops=models.drops_branches(plan.model))
        assert plan.cost == price and plan.pace.flops == 8 * price.train
        assert (plan.pace.tokens, plan.pace.samples_per_epoch) == (8 * block, plan.data.size)


def test_the_dry_run_counts_each_stage_in_its_blocks(path, capsys):
    code, out, err = lemon(capsys, "run", path, "--dry-run", "--json")
    assert code == 0, err
    tokens = {stage["name"]: stage["batch"]["tokens"] for stage in json.loads(out)["stages"]}
    assert tokens == {"short": 8 * BLOCK, "long": 8 * LONG, "whole": 8 * LONG}


REFUSED = {
    "stages.long.data.block=7": "stages.long.data.block: must be at least 8 (got 7)",
    "stages.long.data.blocks=32": "stages.long.data.blocks: unknown key; did you mean 'block'?",
    "stages.long.stop={eval_loss: short}": (
        "stages.long.stop.eval_loss: 'short' is evaluated in blocks of 16 tokens, this one in blocks of 48; name a"
    ),
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_does_not_fit_is_refused(path, override):
    with pytest.raises(UserError) as caught:
        config.load(path, [override])
    assert REFUSED[override] in str(caught.value)


def test_images_have_no_blocks(tmp_path):
    with pytest.raises(UserError, match=r"stages\.small\.data\.block: the data are images; leave it out"):
        config.load(tiny_run(tmp_path), ["stages.small.data.block=32"])


def test_a_block_that_the_text_does_not_fill_is_refused(path, capsys):
    code, _, err = lemon(capsys, "run", path, "--dry-run", "stages.long.data.block=500")
    said = "stages.long.data.block: the evaluation text has 280 tokens, fewer than a block of 500; choose a shorter one"
    assert code == 2 and said in err and "Traceback" not in err


def test_a_run_that_was_begun_takes_no_longer_blocks(path, tmp_path):
    """Its models have no positions for them."""
    before = config.load(
        path, [f"folder={tmp_path}", f"stages.long.data.block={BLOCK}", "stages.whole.data.block=null"]
    )
    recorded = Fingerprint.of(before, before.stage("short")).settings()
    assert recorded["positions"] is None and recorded["stage"]["data"] == {"continue": False, "block": None}
    train(tmp_path, "short", SMALL, {0: 5.0, 6: 4.0}, fingerprint=recorded)
    require_same(before, before.stage("short"))
    now = config.load(path, [f"folder={tmp_path}"])
    with pytest.raises(UserError, match=r"short: begun with other settings: positions was not set, is now 48; take"):
        require_same(now, now.stage("short"))


def test_other_blocks_read_on_with_the_next_epoch():
    """300 rows of 14 ids are 91 of 46, 14 ids left over."""
    short, long = DataPosition(310, 300, 0, 16), DataPosition(0, 91, 0, 48)
    assert short.in_order_of(long) == 2 * 91
    assert DataPosition(300, 300, 0, 16).in_order_of(long) == 91
    assert DataPosition(0, 300, 0, 16).in_order_of(long) == 0
    assert DataPosition(100, 91, 0, 48).in_order_of(DataPosition(0, 300, 0, 16)) == 600
    for other in (DataPosition(0, 91, 1, 48), DataPosition(0, 95, 0, 48), DataPosition(0, 91, 0, None)):
        assert short.in_order_of(other) is None


def in_two_lengths(run: Path, **scratch: object) -> Path:
    """`longer` goes on from the grown `large` in longer blocks."""
    kinds = {"small": "train", "grown": "expand", "large": "train", "longer": "train", "scratch": "train"}
    make_run(run, kinds)
    train(run, "small", SMALL, {0: 8.0, 20: 5.0})
    expand(run, "grown", "small", LARGE)
    train(run, "large", LARGE, {0: 5.0, 10: 3.0}, origin="grown")
    train(run, "longer", LARGE, {0: 4.5, 10: 3.5}, origin="large", settings={**SETTINGS, "block": 512})
    train(run, "scratch", LARGE, {0: 8.0, 40: 4.0}, flops=20, **scratch)
    return run


def test_only_evaluations_in_blocks_of_one_length_are_compared(tmp_path):
    """FLOPs count from the expansion on, the curve begins with the stage in those blocks."""
    report = build([in_two_lengths(tmp_path / "long", settings={**SETTINGS, "block": 512})])
    (one,) = report.runs[0].comparisons
    assert (one.stage, one.given.flops, one.scratch.flops) == ("longer", 150, 800)
    assert [point.flops for point in one.curves.expanded] == [100, 200] and not one.curves.sources
    unknown = "is not compared: no stage that trains model 'model-16' from scratch has been evaluated"
    assert f"'large' {unknown}; train" in summary(report)
    report = build([in_two_lengths(tmp_path / "short")])
    (one,) = report.runs[0].comparisons
    assert (one.stage, [curve.stage for curve in one.curves.sources]) == ("large", ["small"])
    assert f"'longer' {unknown} in blocks of 512 tokens; train" in summary(report)
