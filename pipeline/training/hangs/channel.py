"""The side channel of the beats: a store in rank 0's process, with one connection from each rank.

For a beat each rank writes one key and reads one; rank 0 reads all in one request. What a rank does for itself does not
grow with their number.
"""

import json
import logging
import os
import socket
from dataclasses import astuple, dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from pipeline.training.environment import number
from pipeline.training.hangs.beat import Beat
from pipeline.training.hangs.judgement import Member, Verdict
from pipeline.training.launcher import NODE
from pipeline.training.process_group import World

logger = logging.getLogger(__name__)

CONNECT = timedelta(seconds=20)
STATE, TOLD = "state", "told"
"""Keys: of what rank 0 says to all, of the count of those that have heard of a hang."""


@dataclass(frozen=True)
class State:
    """What rank 0 says. number: of its beats."""

    number: int
    verdict: Verdict | None = None

    @classmethod
    def parse(cls, text: bytes) -> "State":
        number, *verdict = json.loads(text)
        return cls(number, Verdict(*verdict) if verdict else None)

    def __str__(self) -> str:
        return json.dumps([self.number, *(astuple(self.verdict) if self.verdict else ())])


@dataclass(frozen=True)
class Channel:
    """The store, as one rank sees it."""

    store: TCPStore
    world: World

    def say(self, beat: Beat) -> None:
        self.store.set(f"beat/{self.world.rank}", str(beat))

    def answer(self) -> State:
        """What rank 0 says now. Never returns where rank 0 is stopped; raises DistError where it has ended."""
        return State.parse(self.store.get(STATE))

    def publish(self, state: State) -> None:
        """Rank 0 only."""
        self.store.set(STATE, str(state))

    def tell(self) -> None:
        """That this rank has heard of a hang."""
        self.store.add(TOLD, 1)

    def told(self) -> int:
        """How many have heard of it."""
        return int(self.store.add(TOLD, 0))

    def all_beats(self) -> dict[int, Beat]:
        """Rank 0 only."""
        texts = self.store.multi_get([f"beat/{rank}" for rank in range(self.world.size)])
        return {rank: Beat.parse(text.decode()) for rank, text in enumerate(texts) if text}

    def members(self) -> list[Member]:
        """All ranks, for rank 0; rank 0 and this one for the others."""
        first = range(1) if not self.world.first else range(self.world.size)
        ranks = sorted({*first, self.world.rank})
        texts = [text.decode().split(maxsplit=1) for text in self.store.multi_get([f"host/{rank}" for rank in ranks])]
        nodes = len({node for node, _ in texts})
        return [Member(rank, int(node), host, nodes) for rank, (node, host) in zip(ranks, texts, strict=True)]


def opened(world: World) -> Channel | None:
    """Every rank calls this. None, with a warning, where one of them cannot reach rank 0's port."""
    store = _served() if world.first else None
    port = [store.port if store else 0]
    dist.broadcast_object_list(port)
    if store is None:
        store = _connected(port[0])
    if store is not None:
        store.set(f"beat/{world.rank}", str(Beat(0, 0, 0, "start", 0)))
        store.set(f"host/{world.rank}", f"{number(NODE) or number('GROUP_RANK') or 0} {socket.gethostname()}")
    reached: Tensor = torch.tensor([float(store is not None)], device=world.device)
    dist.all_reduce(reached, op=dist.ReduceOp.MIN)
    if not reached.item() or store is None:
        logger.warning(f"not every rank reaches port {port[0]} of rank 0, so nobody looks for hangs")
        return None
    return Channel(store, world)


def _served() -> TCPStore:
    store = TCPStore(os.environ["MASTER_ADDR"], 0, is_master=True, wait_for_workers=False, timeout=CONNECT)
    store.set(STATE, str(State(0)))
    return store


def _connected(port: int) -> TCPStore | None:
    try:
        return TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, wait_for_workers=False, timeout=CONNECT)
    except (dist.DistError, RuntimeError) as error:
        logger.debug(f"the store of the beats at port {port}: {error}")
        return None
