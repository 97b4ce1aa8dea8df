"""Where the wall clock went: rows that add up, over kills and rewinds, and what the report makes of them."""

import json
import os
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from pipeline.accounting.wall_time import wall_time
from pipeline.records.event_records import EventRecord
from pipeline.records.run_folder import StageFolder
from pipeline.records.time_records import SpentRecord, StartRecord
from pipeline.report import build, summary, write
from pipeline.training import stopwatch, wall_clock
from pipeline.training.stopwatch import Stopwatch
from tests.helpers.invented_runs import simple_run
from tests.helpers.pages import Page


def start(step: int, began: float, unrecorded: float = 0.0) -> StartRecord:
    return StartRecord(step=step, began=began, unrecorded=unrecorded)


def spent(step: int, until: float, **seconds: float) -> SpentRecord:
    return SpentRecord(step=step, until=until, seconds=seconds)


KILLED = [
    start(-1, 100.0),
    spent(0, 105.0, start=5.0),
    spent(5, 117.0, forward_backward=10.0, optimizer=2.0),
    spent(5, 118.0, save=1.0),
    spent(8, 124.0, forward_backward=5.0, data=1.0),
    start(5, 140.0, unrecorded=3.0),
    spent(5, 146.0, start=6.0),
    spent(10, 156.0, forward_backward=9.0, data=0.5, other=0.5),
]
"""Killed three seconds behind the line of step 8, and there again 13 seconds later."""


def rows(records) -> dict[str, float]:
    return {kind: seconds for kind, seconds in wall_time("s", records).rows.items() if seconds}


def test_the_page_tells_the_parts_of_a_mean_step(tmp_path):
    """Milliseconds: of ten steps."""
    run = simple_run(tmp_path)
    parts = {"forward": 2.0, "backward": 4.0, "communication": 1.5, "optimizer": 0.5, "data": 1.0}
    StageFolder(run / "large").times.append(start(-1, 100.0), spent(10, 109.0, **parts))
    table = Page(write(build([run]), tmp_path / "out").read_text()).rows
    heads = next(row for row in table if row[:1] == ["one step of"])
    of_large = next(row for row in table[table.index(heads) :] if row[0] == "large")
    told = dict(zip(heads, of_large, strict=True))
    wanted = {"data": "100 ms", "forward": "200 ms", "backward": "400 ms", "communication": "150 ms"}
    wanted |= {"optimizer": "50.0 ms", "sum": "900 ms"}
    assert {name: told[name] for name in wanted} == wanted


def test_rows_add_up_over_a_kill():
    told = wall_time("s", KILLED)
    assert rows(KILLED) == {
        "start": 11.0,
        "data": 0.5,
        "forward_backward": 19.0,
        "optimizer": 2.0,
        "save": 1.0,
        "other": 0.5,
        "lost": 9.0,
        "waiting": 13.0,
    }
    assert sum(told.rows.values()) == told.seconds == 56.0
    assert told.starts == 2 and told.goodput == pytest.approx(21.5 / 56)
    assert told.step["forward_backward"] == 1.9 and sum(told.step.values()) == pytest.approx(2.2), "of ten steps"


def test_a_host_whose_clock_is_behind_makes_no_goodput():
    """The second start is on another one, ten minutes behind."""
    behind = [start(5, 140.0 - 600), spent(5, 146.0 - 600, start=6.0), spent(10, 156.0 - 600, forward_backward=10.0)]
    told = wall_time("s", [*KILLED[:5], *behind])
    assert told.seconds == 24.0 + 6.0 + 10.0 and told.rows["waiting"] == 0 and told.goodput < 1


def test_what_is_lost_stays_lost_and_a_start_is_none():
    """Once more from the beginning: all steps so far were in vain."""
    records = [*KILLED, start(-1, 160.0), spent(0, 161.0, start=1.0), spent(1, 162.0, forward_backward=1.0)]
    assert rows(records) == {"start": 12.0, "forward_backward": 1.0, "lost": 32.0, "waiting": 17.0}
    assert sum(rows(records).values()) == 62.0


def test_a_rewind_in_the_same_process_waits_for_nothing():
    records = [*KILLED[:5], start(5, 124.0), spent(5, 126.0, start=2.0)]
    assert "waiting" not in rows(records) and rows(records)["lost"] == 6.0


def test_a_stage_without_lines_has_no_wall_time():
    assert wall_time("s", []) is None
    assert wall_time("s", [start(-1, 1.0)]).goodput == 0.0


def test_the_steps_behind_the_last_line_are_told_by_the_step_counter(tmp_path):
    stage, now = StageFolder(tmp_path), time.perf_counter()
    wall_clock.note_start(stage, now - 60, -1)
    wall_clock.note_spent(stage, 5, {"data": 20.0}, now - 40)
    with stage.times.path.open("a") as file:
        file.write('{"killed here')
    stage.counter.write(7)
    os.utime(stage.counter.path, (wall_clock.EPOCH + now - 33,) * 2)
    wall_clock.note_start(stage, now - 10, 5)
    told = wall_time("s", stage.times)
    assert told.rows["lost"] == pytest.approx(7) and told.rows["waiting"] == pytest.approx(23)
    assert told.seconds == pytest.approx(50) == pytest.approx(sum(told.rows.values()))


def test_a_counter_from_before_the_last_line_tells_nothing(tmp_path):
    stage, now = StageFolder(tmp_path), time.perf_counter()
    stage.counter.write(7)
    wall_clock.note_start(stage, now + 10, -1)
    wall_clock.note_start(stage, now + 30, 5)
    assert wall_time("s", stage.times).rows["waiting"] == pytest.approx(20)


def test_when_this_process_began():
    age = time.perf_counter() - wall_clock.process_began()
    assert age == pytest.approx(time.time() - psutil.Process().create_time(), abs=1.5)  # psutil knows whole seconds


def test_laps_leave_no_time_out():
    watch, began = Stopwatch(), time.perf_counter()
    watch.begin(began)
    for kind in ("data", "forward_backward", "data"):
        time.sleep(0.002)
        watch.lap(kind)
    watch.settle()
    seconds, told = watch.last - began, watch.take()
    assert sum(told.values()) == pytest.approx(seconds) and set(told) == {"data", "forward_backward"}
    assert watch.take() == {}


def test_compiling_is_taken_out_of_what_it_happened_in():
    watch, began = Stopwatch(), time.perf_counter()
    watch.begin(began)
    time.sleep(0.02)
    watch.compiled(0.015)
    watch.lap("evaluate")
    seconds, told = watch.last - began, watch.take()
    assert told["compile"] == 0.015 and sum(told.values()) == pytest.approx(seconds)


def test_the_report_tells_the_time_and_the_events(tmp_path):
    run = simple_run(tmp_path / "run")
    stage = StageFolder(run / "large")
    stage.times.append(*KILLED)
    seen = {"quantity": "gradient norm", "problem": "spike", "value": 9.25, "limit": 4.125}
    stage.events.append(EventRecord(step=8, **seen, action="rewind", back_to=5, data_step=8))
    report = build([run])
    assert "'large' took 56.0 s in 2 starts, goodput 38.4 %" in summary(report)
    assert "loss or gradient norm out of bounds once" in summary(report)
    words = Page(write(report, tmp_path / "out").read_text()).words
    assert "one step of" in words and "1900 ms" in words
    assert "gradient norm 9.25 above 4.125" in words and "went back to step 5, then took the samples of step 9" in words
    content = json.loads((tmp_path / "out" / "report.json").read_text())["runs"][0]
    assert content["wall_time"][0]["rows"]["waiting"] == 13.0 and content["events"][0]["back_to"] == 5


class StreamEvent:
    """What a GPU's stream would do: the device is at `now` milliseconds when the event is reached."""

    now = 0.0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.at = StreamEvent.now

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: "StreamEvent") -> float:
        return later.at - self.at


def test_on_a_gpu_the_time_of_a_step_is_divided_as_the_device_had_it(monkeypatch):
    """The host gives the work away at once and waits for the loss; the device has 30, 10 and 40 ms to do."""
    monkeypatch.setattr("torch.cuda.Event", StreamEvent)
    watch = Stopwatch.of(torch.device("cuda"))
    began = watch.last
    watch.lap("data")
    watch.begin_step()
    for kind, milliseconds in (("forward_backward", 30), ("optimizer", 10), ("communication", 40)):
        StreamEvent.now += milliseconds
        watch.queued(kind)
    time.sleep(0.01)
    watch.settle()
    watch.lap("optimizer")
    told, whole = watch.take(), watch.last - began
    step = whole - told["data"]
    assert sum(told.values()) == pytest.approx(whole)
    assert told["forward_backward"] == pytest.approx(3 / 8 * step, rel=0.05)
    assert told["communication"] == pytest.approx(4 / 8 * step, rel=0.05)


def test_on_a_gpu_that_is_a_step_behind_samples_cost_what_it_had_nothing_to_do_for(monkeypatch):
    """The device has 30 ms to do for each step. Before the third it stands still for 20: for 5 until the host comes to
    it, for 15 until its samples are there."""
    monkeypatch.setattr("torch.cuda.Event", StreamEvent)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(perf_counter=lambda: clock.now / 1000))
    watch = Stopwatch.of(torch.device("cuda"))

    def begin(late: float = 0.0, waited: float = 0.0) -> None:
        StreamEvent.now += late
        watch.begin_step()
        for kind, milliseconds in (("data", waited), ("forward_backward", 30)):
            StreamEvent.now += milliseconds
            watch.queued(kind)

    clock.now = 10
    watch.lap("start")
    begin()
    begin()
    clock.now = 40
    watch.settle()
    watch.lap("other")
    begin(late=5, waited=15)
    for clock.now in (70, 120):
        watch.settle()
    clock.now = 123
    watch.lap("evaluate")
    told = {kind: 1000 * seconds for kind, seconds in watch.take().items()}
    assert told == pytest.approx({"start": 10, "data": 15, "forward_backward": 90, "other": 5, "evaluate": 3})
