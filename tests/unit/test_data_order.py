"""Which samples a step takes, as a function of the rewinds so far."""

from pipeline.records.event_records import EventRecord
from pipeline.training.data_order import DataOrder


def rewind(step: int, back_to: int, data_step: int) -> EventRecord:
    seen = {"step": step, "quantity": "loss", "problem": "nan", "value": None, "limit": None, "action": "rewind"}
    return EventRecord(**seen, back_to=back_to, data_step=data_step)


def steps(order: DataOrder, count: int) -> list[int]:
    return [order.data_step(step) for step in range(count)]


def test_without_rewinds_each_step_takes_its_own():
    assert steps(DataOrder(), 5) == [0, 1, 2, 3, 4]


def test_a_rewind_leaves_out_what_was_seen_since_the_checkpoint():
    """Step 8 (the one with number 7) was bad, the checkpoint was of step 5."""
    assert steps(DataOrder([rewind(8, 5, 8)]), 8) == [0, 1, 2, 3, 4, 8, 9, 10]


def test_rewinds_to_one_place_and_on_from_there_leave_out_one_after_the_other():
    order = DataOrder([rewind(8, 5, 8), rewind(7, 5, 10), rewind(12, 10, 17)])
    assert steps(order, 12) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14, 17, 18]
    assert [order.rewinds_to(step) for step in (5, 10, 0)] == [2, 1, 0]


def test_a_rewind_to_an_earlier_place_replaces_the_later_ones():
    """The checkpoint of step 10 was damaged: step 12, which took the samples of step 15, goes back to 5."""
    order = DataOrder([rewind(14, 10, 14), rewind(12, 5, 16)])
    assert steps(order, 12) == [0, 1, 2, 3, 4, 16, 17, 18, 19, 20, 21, 22]


def test_what_was_left_out_counts_as_read():
    order = DataOrder([rewind(8, 5, 8)])
    assert [order.read_before(step) for step in (0, 1, 5, 6, 7)] == [0, 1, 5, 9, 10]


def test_no_sample_is_taken_twice_and_the_order_is_kept():
    order = DataOrder([rewind(4, 0, 4), rewind(9, 6, 13), rewind(8, 6, 15), rewind(30, 20, 39)])
    taken = steps(order, 60)
    assert taken == sorted(set(taken))
