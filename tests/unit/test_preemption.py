"""Signals: what is one request and what a second one."""

import os
import signal

import pytest

from pipeline import durations
from pipeline.errors import Preempted
from pipeline.training import preemption
from pipeline.training.preemption import Forwarding, StopRequest


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(preemption.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def ended(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


def test_signals_that_come_together_are_one_request(clock, ended):
    request = StopRequest()
    assert request.reason is None
    request.hear(signal.SIGUSR1)
    clock[0] += 1.9
    request.hear(signal.SIGTERM)
    assert request.reason == "SIGUSR1" and not ended
    clock[0] += 0.2
    request.hear(signal.SIGTERM)
    assert ended == [128 + signal.SIGTERM]


def test_a_worker_hears_its_signals():
    before = [signal.getsignal(number) for number in preemption.SIGNALS]
    try:
        request = StopRequest.listening()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert request.reason == "SIGUSR1"
    finally:
        for number, handler in zip(preemption.SIGNALS, before, strict=True):
            signal.signal(number, handler)


class Worker:
    def __init__(self, alive: bool = True):
        self.alive, self.got = alive, []

    def send_signal(self, number: int) -> None:
        if not self.alive:
            raise preemption.psutil.NoSuchProcess(1)
        self.got.append(number)


def test_a_launcher_sends_it_on_and_a_second_one_kills(clock, monkeypatch):
    workers = [Worker(), Worker(alive=False), Worker()]
    monkeypatch.setattr(preemption.psutil.Process, "children", lambda self: workers)
    launcher = Forwarding()
    launcher.workers_run = True
    launcher.hear(signal.SIGUSR1)
    assert [worker.got for worker in workers] == [[signal.SIGUSR1], [], [signal.SIGUSR1]]
    clock[0] += 3
    with pytest.raises(KeyboardInterrupt):
        launcher.hear(signal.SIGUSR1)
    assert workers[0].got[-1] == workers[2].got[-1] == signal.SIGKILL


def test_a_launcher_without_workers_stops():
    with pytest.raises(Preempted, match="stopped on SIGTERM"):
        Forwarding().hear(signal.SIGTERM)


def test_the_deadline_is_that_of_the_first_process(monkeypatch):
    monkeypatch.delenv(preemption.DEADLINE, raising=False)
    preemption.set_deadline(None)
    assert not preemption.time_is_up()
    monkeypatch.setenv(preemption.DEADLINE, "1")
    preemption.set_deadline(1e9)
    assert preemption.time_is_up() and StopRequest().reason == "max_time"


@pytest.mark.parametrize(
    "text, seconds", [("12 hours", 43200), ("1.5 minutes", 90), ("1 day", 86400), ("20 seconds", 20)]
)
def test_times(text, seconds):
    assert durations.seconds(text) == seconds


@pytest.mark.parametrize("text", ["12", 12, "2 steps", "0 hours", "1e30 days", "-1 hours", "", None])
def test_what_is_no_time(text):
    with pytest.raises(ValueError, match=r"a time needs|unknown unit|is not between nothing and 36,500 days"):
        durations.seconds(text)
