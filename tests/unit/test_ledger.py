"""Records survive a kill, and stay readable."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.records.event_records import Recent, RecentRecord
from pipeline.records.stage_records import EvaluationRecord, Ledger, LedgerEntry, Metrics, SaveRecord
from pipeline.training.window import Window, WindowMeans
from tests.helpers.invented_runs import training_record


def entry(step: int) -> LedgerEntry:
    return LedgerEntry(step=step, kind="train", flops=10**24 + step, samples=4, tokens=32)


HALF = '{"format": 2, "step": 5, "ki'


def test_measurements_are_cut_back_to_a_step_and_a_half_written_line_is_dropped(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for step in range(5):
        metrics.append(SaveRecord(step=step, save_seconds=1.0))
    with metrics.path.open("a") as file:
        file.write(HALF)
    assert [record.step for record in metrics] == [0, 1, 2, 3, 4]
    metrics.truncate(2)
    metrics.append(SaveRecord(step=3, save_seconds=2.0))
    assert [(record.step, record.save_seconds) for record in metrics] == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0)]


def lost(step: int, of: int) -> LedgerEntry:
    return entry(of).model_copy(update={"kind": "lost", "step": step})


def test_what_was_spent_stays_when_a_run_goes_back(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for step in range(5):
        ledger.append(entry(step))
    written = ledger.path.read_bytes()
    with ledger.path.open("a") as file:
        file.write(HALF)
    ledger.restart(2)
    ledger.append(entry(3))
    assert ledger.path.read_bytes().startswith(written)
    assert ledger.accounted() == [entry(0), entry(1), entry(2), lost(3, 3), lost(3, 4), entry(3)]
    ledger.restart(2)
    assert ledger.accounted()[3:] == [lost(3, 3), lost(3, 4), lost(3, 3)], "what was lost once is not lost again"
    ledger.restart(-1)
    assert ledger.accounted() == [lost(0, 0), lost(0, 1), lost(0, 2), *[lost(3, 3), lost(3, 4), lost(3, 3)]]


def test_a_restart_behind_everything_leaves_no_line(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.restart(-1)
    assert not ledger.path.exists()
    ledger.append(entry(4))
    ledger.restart(4)
    assert list(ledger) == ledger.accounted() == [entry(4)]


def test_what_is_recorded_is_read_as_the_same(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    records = [
        EvaluationRecord(step=0, eval_loss=0.1 + 0.2, top1=0.5, evaluation_seconds=1.5),
        training_record(10, 1 / 3, window=10),
        SaveRecord(step=10, save_seconds=0.25),
    ]
    for record in records:
        metrics.append(record)
    assert list(metrics) == records
    assert all(json.loads(line)["format"] == 2 for line in metrics.path.read_text().splitlines())


OLDER_STEP = {
    "loss": 3.0,
    "lr": 1e-3,
    "grad_norm": None,
    "seconds": 0.5,
    "samples_per_second": 8.0,
    "tokens_per_second": 64.0,
    "mfu": None,
}


def test_lines_of_format_1_are_upgraded_and_go_on_in_format_2(tmp_path):
    """Before there were windows, a record had its own step's numbers alone; they stand for the steps since the last."""
    metrics = Metrics(tmp_path / "metrics.jsonl")
    lines = [{"step": 0, "eval_loss": 4.0}, {"step": 10, **OLDER_STEP}, {"step": 20, **OLDER_STEP}]
    lines += [
        {"step": 20, "eval_loss": 3.5},
        {"step": 20, "save_seconds": 1.0},
        {"step": 25, **OLDER_STEP, "window": 3},
    ]
    metrics.path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics.append(training_record(26, 2.0))
    records = list(metrics)
    assert [record.kind for record in records] == ["evaluate", "train", "train", "evaluate", "save", "train", "train"]
    assert [record.window for record in records if record.kind == "train"] == [10, 10, 3, 1]
    metrics.truncate(25)
    assert list(metrics) == records[:-1]
    assert all(json.loads(line)["format"] == 2 for line in metrics.path.read_text().splitlines())


def test_a_key_that_this_version_does_not_know_is_kept(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.path.write_text(json.dumps({**SaveRecord(step=1, save_seconds=2.0).model_dump(), "joules": 5}) + "\n")
    metrics.truncate(1)
    assert json.loads(metrics.path.read_text())["joules"] == 5


BAD = {
    "newer": ({"format": 3}, "line 1: has format 3, and this version of lemon reads formats up to 2; use the version"),
    "no format": ({"format": "two"}, "line 1: 'two' is not the number of a format; the file is damaged"),
    "a key is missing": ({"format": 2, "step": 1}, "line 1: not a record of a stage .kind: Field required; .*damaged"),
    "no object": ([1], "line 1: not a record of a stage .*; the file is damaged"),
}


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD)
def test_a_line_that_cannot_be_read_is_named(tmp_path, content, message):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.path.write_text(json.dumps(content) + "\n")
    with pytest.raises(UserError, match=f"ledger.jsonl, {message}") as caught:
        list(ledger)
    assert "\n" not in str(caught.value)


def test_a_window_tells_the_means_of_its_steps_and_begins_again():
    window = Window()
    for loss, norm, seconds in ((4.0, 1.0, 0.5), (3.0, 2.0, 0.25), (2.0, 6.0, 0.75)):
        window.add(loss, norm, seconds)
    assert window.close() == WindowMeans(steps=3, loss=3.0, grad_norm=3.0, seconds=0.5)
    window.add(0.1 + 0.2, None, 0.1)
    assert window.close() == WindowMeans(1, 0.1 + 0.2, None, 0.1), "one step: to the last digit"


def test_a_line_goes_behind_the_last_whole_one(tmp_path):
    """A full disk has taken half of a line, and the same process, or the next, writes on."""
    recent = Recent(tmp_path / "recent.jsonl")
    lines = [RecentRecord(step=step, losses=[4.0], norms=[1.0], skipped=0) for step in (1, 2, 3)]
    recent.append(lines[0])
    with recent.path.open("a") as file:
        file.write('{"format": 2, "step": 2, "ki')
    recent.append(*lines[1:])
    assert list(recent) == lines
