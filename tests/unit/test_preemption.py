"""Signals: what is one request and what a second one."""

import ctypes
import os
import signal
import time

import pytest

from pipeline import durations
from pipeline.errors import Preempted
from pipeline.records.processes import PARENT, REQUESTS, be_a_helper
from pipeline.training import preemption
from pipeline.training.preemption import Forwarding, StopRequest
from tests.helpers.processes import FORK
from tests.helpers.waiting import wait_for


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


def work(told) -> None:
    os.setsid()  # as torch's agent starts workers
    request = StopRequest.of_this_process()
    told.send(os.getpid())
    while request.reason is None:
        time.sleep(0.01)
    told.send(request.reason)
    time.sleep(60)


def stop_at_once(told) -> None:
    """What it tells: how far it came with offline work; asked again later, how far with the next."""
    os.setsid()
    request = StopRequest.of_this_process()
    told.send(os.getpid())
    for _ in range(2):
        try:
            with request.at_once():
                told.send("at work")
                time.sleep(60)
        except Preempted as stop:
            told.send(str(stop))
    told.send(wait_for(lambda: request.reason))  # which a thread takes down
    time.sleep(60)


def meet(told) -> None:
    """What it tells: that the others have come in time, and, asked before, that they do not."""
    os.setsid()
    preemption.JOINING = 0.3
    request = StopRequest.of_this_process()
    told.send(os.getpid())
    with request.joining():
        while request.reason is None:
            time.sleep(0.01)
    time.sleep(0.5)
    told.send("all have come")
    with request.joining():
        time.sleep(60)


def wait_for_others(told) -> None:
    """The main thread runs no Python any more, as in a collective that the others never join."""
    os.setsid()
    StopRequest.of_this_process()
    told.send(os.getpid())
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def wait() -> None:
    os.setsid()
    time.sleep(60)


@pytest.fixture
def started(monkeypatch):
    """Starts a worker, beside a sibling, in an environment."""
    processes = []

    def start(target, **environment: str):
        for name in (PARENT, preemption.TORCHRUN):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        mine, its = FORK.Pipe()
        pair = FORK.Process(target=target, args=(its,)), FORK.Process(target=wait)
        for process in pair:
            process.start()
            processes.append(process)
        assert mine.recv() == pair[0].pid
        wait_for(lambda: os.getsid(pair[1].pid) == pair[1].pid)
        return *pair, mine

    yield start
    for process in processes:
        process.kill()
        process.join()


AGENT = {"LEMON_PARENT_PID": "1", "LOCAL_WORLD_SIZE": "2"}


@pytest.mark.parametrize("number", REQUESTS)
@pytest.mark.parametrize("environment", [AGENT, {"LOCAL_WORLD_SIZE": "8"}], ids=["agent", "none"])
def test_a_worker_hears_its_signals(started, number, environment):
    """Where no agent has started it nobody counts its siblings."""
    worker, _, said = started(work, **environment)
    os.kill(worker.pid, number)
    assert said.poll(10) and said.recv() == signal.Signals(number).name


def test_who_is_asked_on_the_way_to_the_others_waits_for_them_a_while(started):
    worker, _, said = started(meet, **AGENT)
    os.kill(worker.pid, signal.SIGUSR1)
    assert said.poll(10) and said.recv() == "all have come"
    worker.join(10)
    assert worker.exitcode == preemption.REQUEUE


def test_offline_work_stops_at_once_and_none_begins_behind_a_request(started):
    worker, _, said = started(stop_at_once, **AGENT)
    assert said.poll(10) and said.recv() == "at work"
    os.kill(worker.pid, signal.SIGUSR1)
    told = []
    while said.poll(10) and len(told) < 3:
        told.append(said.recv())
    assert told == ["stopped on SIGUSR1", "stopped on SIGUSR1", "SIGUSR1"]


def test_a_worker_whose_sibling_has_failed_ends_at_once(started):
    """As torch's agent asks it to, which waits half a minute for those that do not."""
    worker, sibling, _ = started(wait_for_others, **AGENT)
    sibling.kill()
    sibling.join()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == 128 + signal.SIGTERM


def help_out() -> None:
    StopRequest.of_this_process()
    be_a_helper(os.getppid())
    for number in REQUESTS:
        os.kill(os.getpid(), number)
    time.sleep(0.3)
    os._exit(7)


def test_a_helper_leaves_requests_to_its_parent():
    process = FORK.Process(target=help_out)
    process.start()
    process.join()
    assert process.exitcode == 7


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
