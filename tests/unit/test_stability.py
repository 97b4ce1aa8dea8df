"""What is decided about a step, from the losses and norms before it."""

import math
from unittest.mock import Mock

import pytest

from pipeline.config.stability import Stability
from pipeline.records.event_records import Events, Recent
from pipeline.training.data_order import DataOrder
from pipeline.training.loop import Loop
from pipeline.training.stability import Stabilizer, stopped_by
from pipeline.training.window import Window

NAN, CALM = math.nan, 8


def stabilizer(recent=None, order=None, **settings) -> Stabilizer:
    return Stabilizer(Stability(window=8, **settings), recent, order or DataOrder())


def calm(judging: Stabilizer) -> Stabilizer:
    """Behind as many quiet steps as fill the window."""
    for step in range(CALM):
        assert judging.judge(step + 1, 4.0 + step % 2 / 10, 1.0, newest=0) is None
    return judging


@pytest.mark.parametrize("loss, norm, said", [(NAN, 1.0, "loss nan"), (4.0, math.inf, "gradient norm inf")])
def test_by_default_what_is_no_number_ends_the_stage(loss, norm, said):
    verdict = stabilizer().judge(3, loss, norm, newest=0)
    assert verdict.action == "abort"
    error = str(stopped_by("s", verdict, loss, norm))
    assert said in error and "at step 3" in error and "lower schedule.peak" in error


def test_by_default_a_spike_is_told_and_training_goes_on():
    verdict = calm(stabilizer()).judge(9, 9.0, 1.0, newest=0)
    assert (verdict.action, verdict.refusal) == ("warn", None)
    assert verdict.words.startswith("loss 9 above ") and verdict.words.endswith(" at step 9: it goes on")
    assert calm(stabilizer(spike="ignore")).judge(9, 9.0, 1.0, newest=0) is None
    assert calm(stabilizer(spike="abort")).judge(9, 4.0, 9.0, newest=0).event.quantity == "gradient norm"


def test_what_is_no_number_comes_before_a_spike():
    verdict = calm(stabilizer(not_finite="skip")).judge(9, 9.0, NAN, newest=0)
    assert (verdict.event.quantity, verdict.event.problem, verdict.action) == ("gradient norm", "nan", "skip")


def test_a_question_before_the_update_answers_what_is_judged_behind_it():
    judging = calm(stabilizer(spike="skip"))
    assert judging.refuses(9.0, 1.0) and judging.refuses(4.0, 9.0)
    assert not judging.refuses(4.0, 1.0) and not judging.refuses(NAN, 1.0)
    assert not calm(stabilizer(spike="rewind")).refuses(9.0, 1.0)


def test_a_warning_goes_on_without_what_is_no_number():
    judging = calm(stabilizer(not_finite="warn"))
    assert judging.settings.may_skip and judging.refuses(NAN, 1.0) and judging.refuses(4.0, math.inf)
    assert not judging.refuses(9.0, 1.0) and not judging.refuses(4.0, 1.0)
    assert not stabilizer().settings.may_skip


def test_skips_in_a_row_have_an_end():
    judging = stabilizer(not_finite="skip", skips=2)
    actions = [judging.judge(step, loss, None, 0) for step, loss in enumerate([NAN, NAN, 4.0, NAN, NAN, NAN], 1)]
    assert [verdict and verdict.action for verdict in actions] == ["skip", "skip", None, "skip", "skip", "abort"]
    assert "stability.skips" in str(stopped_by("s", actions[-1], NAN, None))


def test_a_rewind_says_where_to_and_which_samples_come_next():
    judging = stabilizer(not_finite="rewind")
    event = judging.judge(8, NAN, 1.0, newest=5).event
    assert (event.action, event.back_to, event.data_step) == ("rewind", 5, 8)
    again = stabilizer(not_finite="rewind", order=DataOrder([event])).judge(6, NAN, 1.0, newest=5).event
    assert (again.back_to, again.data_step) == (5, 9)


def test_rewinds_to_one_place_have_an_end():
    events = []
    for _ in range(2):
        judging = stabilizer(not_finite="rewind", rewinds=2, order=DataOrder(events))
        events.append(judging.judge(8, NAN, 1.0, newest=5).event)
    judging = stabilizer(not_finite="rewind", rewinds=2, order=DataOrder(events))
    last = judging.judge(8, NAN, 1.0, newest=5)
    assert last.action == "abort" and "2 rewinds to step 5 (stability.rewinds)" in last.refusal
    assert judging.judge(8, NAN, 1.0, newest=7).action == "rewind"


def test_a_resumed_stage_judges_as_the_one_that_went_on(tmp_path):
    going, recent = stabilizer(spike="skip"), Recent(tmp_path / "recent.jsonl")
    for step in range(20):
        going.judge(step + 1, 4.0 + step % 3 / 7, 1.0 + step % 5 / 9, newest=0)
    recent.append(stabilizer().recent(20), going.recent(20), going.recent(15))
    resumed = stabilizer(recent.at(20), spike="skip")
    assert recent.at(10) is None
    for step in range(20, 40):
        values = 4.0 + step % 4, 1.0 + step % 7
        assert going.refuses(*values) == resumed.refuses(*values)
        assert going.judge(step + 1, *values, newest=0) == resumed.judge(step + 1, *values, newest=0)
    assert going.recent(40) == resumed.recent(40)


def test_an_event_of_a_step_that_is_done_again_is_recorded_once(tmp_path):
    events = Events(tmp_path / "events.jsonl")
    event = stabilizer(not_finite="skip").judge(3, NAN, 1.0, newest=0).event
    events.add(event)
    with events.path.open("a") as file:
        file.write('{"half')
    events.add(event)
    events.add(event.model_copy(update={"step": 4}))
    assert [event.step for event in events] == [3, 4]


def test_means_of_a_record_leave_out_what_is_no_number():
    window = Window()
    for loss, norm in ((4.0, 1.0), (NAN, math.inf), (6.0, 3.0)):
        window.add(loss, norm, 0.5)
    means = window.close()
    assert (means.steps, means.loss, means.grad_norm, means.seconds) == (3, 5.0, 2.0, 0.5)
    window.add(NAN, None, 0.5)
    assert math.isnan(window.close().loss)


def test_a_rewind_waits_for_the_save_in_flight():
    """It goes back to that checkpoint, and its engine ends."""
    loop, order = Loop.__new__(Loop), Mock()
    loop.plan = loop.reached = loop.progress = loop.world = Mock()
    loop.engine, loop.plan.folder.events.add = order.engine, order.add
    order.engine.saving.published.return_value = []
    loop._spent = Mock()
    assert loop._acted_on(stabilizer(not_finite="rewind").judge(8, NAN, 1.0, newest=5)) is True
    names = [name for name, *_ in order.mock_calls]
    assert names.index("engine.saving.finish") < names.index("add")
    order.reset_mock()
    assert loop._acted_on(stabilizer(not_finite="warn").judge(8, NAN, 1.0, newest=5)) is False
    assert [name for name, *_ in order.mock_calls] == ["add"]
