"""Where several nodes meet before each start of a training: those that have come by then train together, until the
training ends or a fault sends them back here.

Node 0 serves the store for as long as its command lives, so its loss ends the run. A node that was lost and is started
again takes part from the next meeting on. Each start has a port of its own: torch's rendezvous ends with it.
"""

import json
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from uuid import uuid4

from torch._C._distributed_c10d import TCPStore
from torch.distributed import DistError

from pipeline.errors import UserError, one_line
from pipeline.training.launcher import Nodes, Seat

logger = logging.getLogger(__name__)

LONGEST_WAIT = 600.0
"""Seconds in which as many nodes as are needed must come."""
CONNECTING = timedelta(seconds=60)
"""In which a node must reach node 0, and node 0 answer it, once that serves the place."""
KNOCK = 3.0
"""Seconds in which it takes a connection, if it does."""
POLL = 0.1
"""Seconds between two looks of node 0 for the others."""
GRACE = 5.0
"""Seconds for which a node bears that node 0 does not answer."""
NOBODY = "-"
"""What stands in the place of a ticket that was used."""


class Meeting:
    """The meeting place of the nodes of one command, as one of them sees it."""

    def __init__(self, nodes: Nodes, patience: float):
        """patience: seconds for which node 0 waits for more nodes than are needed. Raises UserError where it cannot
        serve the place, or another node cannot reach it."""
        self.nodes, self.patience = nodes, patience
        self._ticket = ""
        self._alone_since: float | None = None
        try:
            self._store = TCPStore(
                nodes.address, nodes.port, is_master=nodes.first, timeout=CONNECTING, wait_for_workers=False
            )
        except DistError as error:
            raise UserError(
                f"node {nodes.rank} cannot connect to the other nodes at {nodes.address}:{nodes.port} "
                f"({one_line(error)}); check --master-addr, take another --master-port, and start all {nodes.count} "
                "nodes"
            ) from error

    def seat_all(self, stage: str, fits: Callable[[int], bool]) -> Seat:
        """On node 0: wait for the others, give each of them its place in the training of `stage`, and return its own.
        fits: whether so many nodes can share the batch. Raises UserError where too few come."""
        tickets = self._wait_for_others(fits)
        count = max(number for number in range(self.nodes.least, len(tickets) + 2) if fits(number))
        port = _free_port()
        seats = [Seat(stage, count, rank, port) for rank in range(count)]
        seated = list(tickets)[: count - 1]
        for node, seat in zip(seated, seats[1:], strict=True):
            self._store.set(tickets[node], json.dumps(asdict(seat)))
            self._store.compare_set(_place(node), tickets[node], NOBODY)  # unless it has just come again
        if left := sorted(set(range(1, self.nodes.count)) - set(seated)):
            logger.warning(
                f"{stage}: going on with {count} of {self.nodes.count} nodes, without node {', '.join(map(str, left))}"
            )
        return seats[0]

    def _wait_for_others(self, fits: Callable[[int], bool]) -> dict[int, str]:
        """The ticket of each node that has come."""
        begun = time.monotonic()
        while True:
            tickets, waited = self._tickets(), time.monotonic() - begun
            enough = any(fits(count) for count in range(self.nodes.least, len(tickets) + 2))
            if enough and (len(tickets) + 1 == self.nodes.count or waited > self.patience):
                return tickets
            if waited > LONGEST_WAIT or len(tickets) + 1 == self.nodes.count:
                raise UserError(self._too_few(tickets, waited))
            time.sleep(POLL)

    def _tickets(self) -> dict[int, str]:
        there = [node for node in range(1, self.nodes.count) if self._store.check([_place(node)])]
        tickets = {node: self._store.get(_place(node)).decode() for node in there}
        return {node: ticket for node, ticket in tickets.items() if ticket != NOBODY}

    def _too_few(self, tickets: dict[int, str], waited: float) -> str:
        missing = sorted(set(range(1, self.nodes.count)) - set(tickets))
        if not missing:
            return f"the batch cannot be shared by {self.nodes.least} to {self.nodes.count} nodes; choose one that can"
        return (
            f"node {', '.join(map(str, missing))} of {self.nodes.count} did not come in {waited / 60:.0f} minutes; "
            "start all nodes again, or allow fewer with --nodes MIN:MAX"
        )

    def seat(self, stage: str) -> Seat | None:
        """On another node, as often as it likes: its place in the training of `stage`, once node 0 has given it one.
        Raises UserError where node 0 has been gone for a while."""
        try:
            answer = self._answer()
            self._alone_since = None
        except DistError as error:
            self._bear(error)
            return None
        seat = Seat(**json.loads(answer)) if answer else None
        if seat is None or seat.stage != stage:
            return None
        self._ticket = ""
        return seat

    def _answer(self) -> str | None:
        """What node 0 has left for this node's ticket, which is drawn first where it has none."""
        if not self._ticket:
            self._ticket = f"seat/{uuid4().hex}"
            self._store.set(_place(self.nodes.rank), self._ticket)
        return self._store.get(self._ticket).decode() if self._store.check([self._ticket]) else None

    def _bear(self, error: DistError) -> None:
        """Wait a while before node 0 counts as gone: one that stopped leaves its reason where `runs` finds it."""
        self._alone_since = self._alone_since or time.monotonic()
        if time.monotonic() - self._alone_since > GRACE:
            raise UserError(
                f"node 0, where the nodes meet at {self.nodes.address}:{self.nodes.port}, is gone ({one_line(error)}): "
                "it was killed, or cannot be reached; start all nodes again to resume"
            ) from error


def is_served(nodes: Nodes) -> bool:
    """Whether anybody takes connections where node 0 will."""
    try:
        with socket.create_connection((nodes.address, nodes.port), timeout=KNOCK):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _place(node: int) -> str:
    """Where a node leaves its ticket."""
    return f"node/{node}"
