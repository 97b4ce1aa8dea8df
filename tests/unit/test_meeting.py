"""Nodes meet before each start of a training: all of them, or enough of them; one that was lost comes back later."""

import threading
from collections.abc import Callable

import pytest

from pipeline.errors import UserError
from pipeline.training import meeting
from pipeline.training.launcher import Nodes, Seat
from pipeline.training.meeting import Meeting
from tests.helpers.ports import free_port
from tests.helpers.waiting import wait_for


def places(count: int, fewest: int, patience: float = 0.3) -> Callable[[int], Meeting]:
    """Makes the meeting place as node `rank` sees it."""
    port = free_port()
    return lambda rank: Meeting(Nodes(count, rank, "127.0.0.1", port, fewest), patience)


def seats_of(first: Meeting, others: list[Meeting], fits: Callable[[int], bool] = lambda count: True) -> list[Seat]:
    """What each is told; those in reserve are left out."""
    found: dict[int, Seat] = {}
    over = threading.Event()

    def come(number: int, other: Meeting) -> bool:
        if seat := other.seat("small"):
            found[number] = seat
        return number in found or over.is_set()

    waiting = [threading.Thread(target=wait_for, args=(lambda e=e: come(*e),)) for e in enumerate(others, 1)]
    for thread in waiting:
        thread.start()
    try:
        found[0] = first.seat_all("small", fits)
    finally:
        over.set()
        for thread in waiting:
            thread.join()
    for number, other in enumerate(others, 1):
        if number not in found:
            come(number, other)
    return [found[number] for number in sorted(found)]


def test_all_nodes_take_part_each_with_a_rank_of_its_own():
    place = places(3, 3)
    seats = seats_of(place(0), [place(1), place(2)])
    assert [(seat.count, seat.rank) for seat in seats] == [(3, 0), (3, 1), (3, 2)]
    assert len({seat.port for seat in seats}) == 1


def test_enough_nodes_go_on_without_the_lost_one_which_comes_back_later(caplog):
    place = places(3, 2)
    first, last = place(0), place(2)
    assert [(seat.count, seat.rank) for seat in seats_of(first, [last])] == [(2, 0), (2, 1)]
    assert caplog.messages == ["small: going on with 2 of 3 nodes, without node 1"]
    assert [(seat.count, seat.rank) for seat in seats_of(first, [place(1), last])] == [(3, 0), (3, 1), (3, 2)]


def test_a_node_that_does_not_fit_stays_in_reserve_until_the_next_stage():
    place = places(3, 1)
    first, others = place(0), [place(1), place(2)]
    assert [seat.count for seat in seats_of(first, others, lambda count: count != 3)] == [2, 2]
    assert others[1].seat("small") is None
    others[0].seat("large")
    assert first.seat_all("large", lambda count: True).count == 3
    assert [other.seat("large").rank for other in others] == [1, 2]
    assert others[1].seat("small") is None


def test_too_few_nodes_are_named(monkeypatch):
    monkeypatch.setattr(meeting, "LONGEST_WAIT", 0.3)
    place = places(3, 3)
    with pytest.raises(UserError, match=r"^node 1, 2 of 3 did not come in 0 minutes; start all nodes again"):
        place(0).seat_all("small", lambda count: True)


def test_a_batch_that_no_number_of_nodes_can_share_is_refused():
    place = places(2, 1)
    with pytest.raises(UserError, match=r"^the batch cannot be shared by 1 to 2 nodes"):
        seats_of(place(0), [place(1)], lambda count: False)


def test_node_0_holds_the_place_and_its_loss_is_told(monkeypatch):
    monkeypatch.setattr(meeting, "GRACE", 0.2)
    place = places(2, 1)
    first, second = place(0), place(1)
    assert second.seat("small") is None
    del first._store
    with pytest.raises(UserError, match=r"^node 0, where the nodes meet at 127.0.0.1:\d+, is gone"):
        wait_for(lambda: second.seat("small"))


def test_a_place_that_is_taken_or_not_there_is_named(monkeypatch):
    monkeypatch.setattr(meeting, "CONNECTING", meeting.timedelta(seconds=1))
    place = places(2, 2)
    with pytest.raises(UserError, match=r"^node 1 cannot connect to the other nodes at 127.0.0.1:\d+ .*--master-addr"):
        place(1)
    first = place(0)
    with pytest.raises(UserError, match="take another --master-port"):
        place(0)
    del first
