"""The static rendezvous of several nodes. Node 0 serves the store that all agents read; torch's own rendezvous ends
with its agent, and a slower node, which still waits for the answer of the last barrier, prints a broken connection."""

import threading
import time
from contextlib import suppress
from datetime import timedelta

from torch.distributed import DistError
from torch.distributed.distributed_c10d import Store
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous, create_rdzv_handler

BACKEND = "static-until-all-have-left"
LONGEST_WAIT = timedelta(seconds=5)
"""For nodes that will never say goodbye, or never hear it: they were killed, stopped, or the link to them was cut."""


class NodeRendezvous(StaticTCPRendezvous):
    """Keeps the store open until every node has had its last answer from it."""

    def get_backend(self) -> str:
        return BACKEND

    def shutdown(self) -> bool:
        """Called once on each node, after its last use of the store. What asks it may never have an answer."""
        if self._store is not None:
            goodbye = threading.Thread(target=self._say_goodbye, args=(self._store,), daemon=True)
            goodbye.start()
            goodbye.join(LONGEST_WAIT.total_seconds() + 1)
        return True

    def _say_goodbye(self, store: Store) -> None:
        with suppress(DistError):  # node 0 was killed, and the store with it
            self._wait_for_all(store)

    def _wait_for_all(self, store: Store) -> None:
        left, latest = store.add("nodes that have left", 1), time.monotonic() + LONGEST_WAIT.total_seconds()
        while self.rank == 0 and left < self.world_size and time.monotonic() < latest:
            time.sleep(0.02)
            left = store.add("nodes that have left", 0)


def register() -> str:
    """Make torch's launcher know this rendezvous; the name to ask for it."""
    rendezvous_handler_registry.register(BACKEND, _of)
    return BACKEND


def _of(parameters: RendezvousParameters) -> RendezvousHandler:
    """Torch reads the endpoint and the rank out of the parameters; only the class differs."""
    handler = create_rdzv_handler(parameters)
    assert isinstance(handler, StaticTCPRendezvous)
    seconds = int(handler.timeout.total_seconds())
    return NodeRendezvous(
        handler.master_addr, handler.master_port, handler.rank, handler.world_size, handler.run_id, seconds
    )
