"""Saving while the training goes on: at a step boundary the state is copied to host memory, a thread writes the files
and publishes the checkpoint (`save_in_flight.py`). One save is in flight at a time.

`save: blocking` waits for that thread and copies nothing.
"""

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.checkpoints import manifest, publish
from pipeline.checkpoints.finite import Spans
from pipeline.checkpoints.serialization.frozen_tree import FrozenTree
from pipeline.checkpoints.serialization.host_memory import HostMemory
from pipeline.errors import UserError
from pipeline.training.checkpoint_engine import TakingCheckpointEngine
from pipeline.training.save_in_flight import Publication, SaveInFlight

logger = logging.getLogger(__name__)

LONGEST_SETTLING = 60.0
"""Seconds that a stage which fails gives a save in flight."""


class Saving:
    """All saves of one engine of DeepSpeed. due: since when one is and has not begun, of `time.perf_counter`."""

    def __init__(self, engine: Any, rank: int, world: int, background: bool):
        self.engine, self.rank, self.world, self.background = engine, rank, world, background
        self.cuda = torch.cuda.is_initialized()
        self.memory = HostMemory(pin=self.cuda)
        self.flight: SaveInFlight | None = None
        self.begun: list[SaveInFlight] = []
        self.reserved = self.slow = False
        self.due: float | None = None
        self._looks = 0
        self._taken: dict[str, FrozenTree] = {}
        engine.checkpoint_engine = TakingCheckpointEngine(engine.checkpoint_engine, self._take)

    def reserve(self) -> None:
        """Have the memory for copies made ready; to be called behind a step, for before the first one there is no
        optimizer state. Raises UserError where there is too little."""
        if self.background and not self.reserved:
            self.reserved = True
            self.memory.reserve(FrozenTree.of(tree) for tree in self._trees())

    def _trees(self) -> Iterator[Any]:
        """What this rank's files hold beside small things. Under stage 3 weights are parts of the optimizer's; small
        ones, which every rank keeps whole, DeepSpeed cuts for the save."""
        if self.engine.zero_optimization_partition_weights():
            yield dict(self.engine.module.named_buffers())
        elif self.engine.save_non_zero_checkpoint:
            yield self.engine.module_state_dict()
        if self.engine.save_non_zero_checkpoint or self.engine.save_zero_checkpoint:
            yield self.engine.optimizer.state_dict()

    @property
    def failed(self) -> bool:
        """Whether the save in flight has, on this rank: it then wants to stop, and all learn of it in `finish`."""
        return self.flight is not None and self.flight.failed

    def moved(self) -> int:
        """Bytes that the save in flight has written and read back on this rank, and looks at it by a stage that fails:
        what goes up while it does not hang."""
        flight = self.flight
        return self._looks + (0 if flight is None else flight.moved)

    def save(self, publication: Publication, beside: dict[str, str], client_state: dict[str, Any]) -> None:
        """Begin a save; all ranks together. beside: small files by name. Raises UserError on every rank where the last
        one has failed, and, where this one is waited for, if it fails."""
        begun = self.make_room()
        self.due = None
        flight = SaveInFlight(publication, self.rank, self.world, begun, spans=stage_3_spans(self.engine))
        if self.rank == 0:
            publish.staging(publication.final)
        dist.barrier()
        self.memory.reuse()
        self.engine.save_checkpoint(
            str(flight.staging), tag=publication.final.name, client_state=client_state, save_latest=False
        )
        if self.cuda:
            torch.cuda.synchronize()
        flight.files, self._taken = self._taken, {}
        flight.beside = beside if self.rank == 0 else {}
        self.flight = flight
        self.begun.append(flight)
        flight.start()
        if not self.background:
            self.finish()
        flight.pause = time.perf_counter() - begun

    def _take(self, path: Path, content: Any) -> None:
        """Called by DeepSpeed for each file of this rank."""
        tree = FrozenTree.of(content)
        self._taken[path.name] = self.memory.copy(tree) if self.background else tree

    def make_room(self) -> float:
        """Wait for the last save where the next is due; all ranks together. Returns since when, of `time.perf_counter`.
        Raises UserError as `finish` does."""
        begun = self.due = time.perf_counter() if self.due is None else self.due
        if self.flight is not None and not self.flight.published.done() and self.rank == 0 and not self.slow:
            self.slow = True
            logger.warning(
                f"{self.flight.publication.final}: still being written when the next save is due, which waits for it; "
                "save less often (save_every), or to a faster disk"
            )
        self.finish()
        return begun

    def finish(self) -> None:
        """Wait until the save in flight is published; all ranks together. Raises UserError on every rank where it has
        failed on any."""
        if (flight := self.flight) is None:
            return
        try:
            for future in (flight.written, flight.published):
                self._agree(flight, future.exception())
        finally:
            self.flight = None

    def _agree(self, flight: SaveInFlight, error: BaseException | None) -> None:
        """Raises on every rank where any has an error."""
        told: list[str | None] = [None] * self.world
        dist.all_gather_object(told, None if error is None else _words(error))
        if text := next((each for each in told if each), None):
            self._abandon(flight)
            raise UserError(text) if error is None or isinstance(error, UserError) else error

    def _abandon(self, flight: SaveInFlight) -> None:
        flight.abandoned.set()
        flight.published.exception()  # waits for its end
        if self.rank == 0:
            shutil.rmtree(flight.staging, ignore_errors=True)

    def published(self) -> Iterator[SaveInFlight]:
        """The saves that rank 0 has published since the last call."""
        ended = [flight for flight in self.begun if flight.published.done()]
        self.begun = [flight for flight in self.begun if flight not in ended]
        return (flight for flight in ended if flight.published.exception() is None and self.rank == 0)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Around what trains: where it raises a UserError, a save in flight is given some time, without the others."""
        try:
            yield
        except UserError:
            self._settle(time.monotonic() + LONGEST_SETTLING)
            raise

    def _settle(self, deadline: float) -> None:
        while self.flight is not None and not self.flight.failed and time.monotonic() < deadline:
            if (self.flight.publication.final / manifest.NAME).exists() and self.flight.published.done():
                return
            self._looks += 1
            time.sleep(0.05)

    def close(self) -> None:
        """Give the memory back."""
        self.memory.close()


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"


def stage_3_spans(engine: Any) -> list[Spans]:
    """Of each sub-group's flat tensor, what this rank's shares of parameters fill; shares are equal and padded."""
    if engine.zero_optimization_stage() != 3:
        return []
    rank = dist.get_rank()
    return [_spans([(p.partition_numel(), p.ds_numel) for p in group], rank) for group in engine.optimizer.fp16_groups]


def _spans(sizes: Sequence[tuple[int, int]], rank: int) -> Spans:
    """sizes: elements of a share, and of the whole parameter."""
    starts = accumulate((share for share, _ in sizes), initial=0)
    return [
        (start, start + min(max(whole - rank * share, 0), share))
        for start, (share, whole) in zip(starts, sizes, strict=False)
    ]
