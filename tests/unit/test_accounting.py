"""FLOPs add up exactly, crossings are where a ruler would put them, a lineage is followed as far as records go."""

import json
from pathlib import Path

import pytest

from pipeline.accounting.crossing import crossing, reach
from pipeline.accounting.lineage import lineage
from pipeline.accounting.recorded_runs import Evaluation, RecordReader, curve
from pipeline.accounting.totals import Amounts, by_kind, training_flops
from pipeline.records.stage_records import EvaluationRecord, LedgerEntry
from pipeline.report import build
from tests.helpers.invented_runs import (
    LARGE,
    LARGE_LOSS,
    SCRATCH_LOSS,
    SMALL,
    expand,
    make_run,
    simple_run,
    train,
    training_record,
)


def points(*known: tuple[int, int, float]) -> list[Evaluation]:
    return [Evaluation(step=step, flops=flops, loss=loss) for step, flops, loss in known]


def test_flops_add_exactly():
    big = 10**24 + 1  # beyond what a float can count
    ledger = []
    for step in (1, 2, 3):
        ledger.append(LedgerEntry(step=step, kind="train", flops=big, samples=1, tokens=2))
        ledger.append(LedgerEntry(step=step, kind="recompute", flops=5, samples=0, tokens=0))
    ledger.append(LedgerEntry(step=3, kind="evaluate", flops=7, samples=1, tokens=2))
    assert training_flops(ledger, 2) == 2 * (big + 5)
    assert training_flops(ledger, 3) == 3 * (big + 5)
    assert by_kind(ledger)["train"] == Amounts(flops=3 * big, samples=3, tokens=6)


def test_curve_joins_evaluations_with_training_flops():
    metrics, ledger = [EvaluationRecord(step=0, eval_loss=4.0)], []
    for step in (1, 2, 3, 4):
        metrics.append(training_record(step, 3.0))
        ledger.append(LedgerEntry(step=step, kind="train", flops=10, samples=1, tokens=1))
        if step % 2 == 0:
            metrics.append(EvaluationRecord(step=step, eval_loss=4.0 - step))
            ledger.append(LedgerEntry(step=step, kind="evaluate", flops=99, samples=1, tokens=1))
    assert curve(metrics, ledger) == points((0, 0, 4.0), (2, 20, 2.0), (4, 40, 0.0))


@pytest.mark.parametrize(
    "target, flops", [(5.0, 0), (4.0, 0), (3.0, 10), (2.0, 20), (1.5, 25), (0.0, 40), (-1.0, None)]
)
def test_crossing_is_linear_between_evaluations(target, flops):
    assert crossing(points((0, 0, 4.0), (2, 20, 2.0), (4, 40, 0.0)), target) == flops


def test_a_loss_that_comes_back_up_counts_where_it_stays():
    curve = points((0, 0, 4.0), (1, 10, 2.0), (2, 20, 3.0), (3, 30, 1.0))
    assert crossing(curve, 2.0) == 25  # half way between 3.0 at 20 and 1.0 at 30
    assert crossing(curve, 2.0, kept=False) == 10


def test_a_target_that_is_left_again_is_not_reached():
    found = reach(points((0, 0, 4.0), (1, 10, 2.0), (2, 20, 3.0)), 2.5)
    assert found.flops is None and found.lost and found.best.step == 1 and found.last == 3.0
    assert not reach(points((0, 0, 4.0), (1, 10, 3.0)), 2.5).lost


def test_accuracy_is_reached_from_below():
    curve = [Evaluation(step=n, flops=10 * n, loss=1.0, top1=share) for n, share in enumerate((0.1, 0.5, 0.4, 0.8))]
    assert crossing(curve, 0.6, "top1") == 25 and crossing(curve, 0.45, "top1", kept=False) == 9
    assert crossing(curve, 0.9, "top1") is None and reach(curve, 0.9, "top1").best.step == 3


def checkpoint(folder: Path, **manifest: object) -> Path:
    """A checkpoint folder that holds a manifest alone."""
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def names(start: Path) -> list[tuple[str, str]]:
    return [(ancestor.name, ancestor.kind) for ancestor in lineage(start, RecordReader())]


def test_a_lineage_goes_from_stage_to_stage(tmp_path):
    run = simple_run(tmp_path / "run")
    expected = [("large", "train"), ("grown", "expand"), ("small", "train")]
    assert names(run / "large") == names(run / "large" / "checkpoints" / "step-0000020") == expected


def test_a_manifest_names_the_step_that_was_taken(tmp_path):
    run = simple_run(tmp_path / "run")
    source = str(tmp_path / "before-the-run-was-moved" / "small" / "checkpoints" / "step-0000010")
    checkpoint(run / "grown" / "checkpoints" / "step-0000000", kind="expand", source={"path": source})
    *_, small = lineage(run / "large", RecordReader())
    assert (small.name, small.step, small.training_flops) == ("small", 10, 30)
    evaluated = Amounts(flops=7, samples=16, tokens=128)
    assert small.spent == {"train": Amounts(flops=30, samples=40, tokens=320), "evaluate": evaluated}


def test_a_stage_has_the_manifest_of_its_newest_checkpoint(tmp_path):
    run = simple_run(tmp_path / "run")
    for step in (900, 1000, 9_999_999, 10_000_000):
        checkpoint(run / "small" / "checkpoints" / f"step-{step}", kind="train", note=step)
    (small,) = lineage(run / "small", RecordReader())
    assert small.manifest["note"] == 10_000_000


def test_checkpoints_outside_a_run_are_followed(tmp_path):
    """small, resharded, expanded by hand, trained in another run: all of it is known."""
    source = make_run(tmp_path / "source", {"small": "train"})
    train(source, "small", SMALL, {0: 8.0, 20: 5.0}, flops=3)
    taken = source / "small" / "checkpoints" / "step-0000020"
    resharded = checkpoint(tmp_path / "resharded", kind="reshard", source={"path": str(taken)})
    grown = {"kind": "expand", "method": "lemon", "lossless": True, "source": {"path": str(resharded)}}
    by_hand = checkpoint(tmp_path / "by-hand", **grown)
    run = make_run(tmp_path / "run", {"large": "train", "scratch": "train"})
    train(run, "large", LARGE, LARGE_LOSS, origin=str(by_hand))
    train(run, "scratch", LARGE, SCRATCH_LOSS)
    assert names(run / "large")[1:] == [("by-hand", "expand"), ("resharded", "reshard"), ("small", "train")]
    (one,) = build([run]).runs[0].comparisons
    assert (one.source.flops, one.all_in.flops, one.expansion.method) == (60, 210, "lemon")


def test_a_lineage_ends_where_nothing_is_recorded(tmp_path):
    run = make_run(tmp_path / "run", {"grown": "expand"})
    expand(run, "grown", "elsewhere/model", LARGE)
    found = lineage(run / "grown", RecordReader())
    assert names(run / "grown") == [("grown", "expand"), ("model", "foreign")]
    assert not found[-1].recorded and found[-1].training_flops is None and found[-1].spent is None


def test_checkpoints_that_name_each_other_end(tmp_path, caplog):
    first, second = tmp_path / "first", tmp_path / "second"
    checkpoint(first, kind="export", source={"path": str(second)})
    checkpoint(second, kind="export", source={"path": str(first)})
    assert names(first) == [("first", "export"), ("second", "export"), ("first", "foreign")]
    assert f"{first}: is recorded as its own origin; what lies behind it counts as not known" in caplog.text


def test_a_stage_that_is_its_own_origin_ends(tmp_path, caplog):
    run = make_run(tmp_path / "run", {"small": "train"})
    train(run, "small", SMALL, {0: 8.0, 20: 5.0}, origin="small")
    assert names(run / "small") == [("small", "train"), ("small", "foreign")]
    assert len(build([run]).runs[0].stages) == 1
    assert f"{run / 'small'}: is recorded as its own origin" in caplog.text
