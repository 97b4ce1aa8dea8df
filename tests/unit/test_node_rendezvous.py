"""The store of several nodes stays open until each has had its last answer from it."""

import threading
import time

from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry

from pipeline.training import node_rendezvous
from tests.helpers.ports import free_port


def nodes(count: int) -> list[node_rendezvous.NodeRendezvous]:
    """Handlers as torch's launcher makes them, each of which has met the others."""
    backend, endpoint = node_rendezvous.register(), f"127.0.0.1:{free_port()}"
    made = [
        rendezvous_handler_registry.create_handler(
            RendezvousParameters(backend, endpoint, "lemon", count, count, rank=rank)
        )
        for rank in range(count)
    ]
    meeting = [threading.Thread(target=node.next_rendezvous) for node in made]
    for thread in meeting:
        thread.start()
    for thread in meeting:
        thread.join()
    return made


def test_node_0_waits_for_a_node_that_still_asks():
    first, second = nodes(2)
    leaving = threading.Thread(target=first.shutdown)
    leaving.start()
    time.sleep(0.5)
    assert leaving.is_alive()
    assert second.shutdown()
    leaving.join(2)
    assert not leaving.is_alive()


def test_it_does_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(node_rendezvous, "LONGEST_WAIT", node_rendezvous.timedelta(seconds=0.3))
    first, _ = nodes(2)
    start = time.monotonic()
    assert first.shutdown()
    assert 0.3 <= time.monotonic() - start < 5
