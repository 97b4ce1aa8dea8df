"""Records survive a kill."""

from pipeline.ledger import Records


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
