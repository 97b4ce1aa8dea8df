"""Records survive a kill."""

from pipeline.records.stage_records import Records, Window


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


def test_a_window_tells_the_means_of_its_steps_and_begins_again():
    window = Window()
    for loss, norm, seconds in ((4.0, 1.0, 0.5), (3.0, 2.0, 0.25), (2.0, 6.0, 0.75)):
        window.add(loss, norm, seconds)
    assert len(window) == 3
    assert window.close() == {"loss": 3.0, "grad_norm": 3.0, "seconds": 0.5}
    assert len(window) == 0
    window.add(0.1 + 0.2, None, 0.1)
    assert window.close() == {"loss": 0.1 + 0.2, "grad_norm": None, "seconds": 0.1}, "one step: to the last digit"
