"""Records survive a kill, FLOPs add up exactly, crossings are where a ruler would put them."""

import pytest

from pipeline.ledger import Records, crossing, curve, spent_until


def test_records_are_cut_back_to_a_step_and_a_half_written_line_is_dropped(tmp_path):
    records = Records(tmp_path / "metrics.jsonl")
    for step in range(5):
        records.append(step=step, loss=1.0 / (step + 1))
    with records.path.open("a") as file:
        file.write('{"step": 5, "lo')
    assert [r["step"] for r in records] == [0, 1, 2, 3, 4]
    records.truncate(2)
    assert [r["step"] for r in records] == [0, 1, 2]
    records.append(step=3, loss=0.1)
    assert list(records)[-1] == {"step": 3, "loss": 0.1}


def test_flops_add_exactly(tmp_path):
    ledger = Records(tmp_path / "ledger.jsonl")
    big = 10**24 + 1  # beyond what a float can count
    for step in (1, 2, 3):
        ledger.append(step=step, kind="train", flops=big)
        ledger.append(step=step, kind="recompute", flops=5)
    ledger.append(step=3, kind="evaluate", flops=7)
    assert spent_until(ledger, 2) == 2 * (big + 5)
    assert spent_until(ledger, 3) == 3 * (big + 5)


def test_curve_joins_evaluations_with_training_flops(tmp_path):
    metrics, ledger = Records(tmp_path / "metrics.jsonl"), Records(tmp_path / "ledger.jsonl")
    metrics.append(step=0, eval_loss=4.0)
    for step in (1, 2, 3, 4):
        metrics.append(step=step, loss=3.0)
        ledger.append(step=step, kind="train", flops=10)
        if step % 2 == 0:
            metrics.append(step=step, eval_loss=4.0 - step)
            ledger.append(step=step, kind="evaluate", flops=99)
    assert curve(metrics, ledger) == [(0, 0, 4.0), (2, 20, 2.0), (4, 40, 0.0)]


@pytest.mark.parametrize("target, flops", [(5.0, 0), (4.0, 0), (3.0, 10), (2.0, 20), (1.5, 25), (0.0, 40), (-1.0, None)])
def test_crossing_is_linear_between_evaluations(target, flops):
    assert crossing([(0, 0, 4.0), (2, 20, 2.0), (4, 40, 0.0)], target) == flops


def test_a_loss_that_comes_back_up_crosses_once():
    assert crossing([(0, 0, 4.0), (1, 10, 2.0), (2, 20, 3.0), (3, 30, 1.0)], 2.0) == 10
