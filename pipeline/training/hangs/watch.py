"""The threads that beat and look, one or two in each worker, while a stage trains."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, cast

import torch.distributed as dist

from pipeline.config.hang import HangChoice
from pipeline.errors import FAULT, FaultError
from pipeline.training import launcher, timeouts
from pipeline.training.hangs import beat, channel, judgement, stacks
from pipeline.training.hangs.beat import Beat
from pipeline.training.hangs.channel import Channel, State
from pipeline.training.hangs.judgement import Observer, Verdict
from pipeline.training.hangs.limits import Limits
from pipeline.training.process_group import World

logger = logging.getLogger(__name__)

OTHERS_HEAR = 2.0
"""Seconds that rank 0 waits for the others to hear of a hang, before it ends and the store with it."""


class Reached:
    """How far this rank has come. The loop tells it, the threads read it. work: another number while the
    rank computes or writes."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.work: Callable[[], int] = int
        self._place, self._begun, self._number = (0, "start", 0), time.monotonic(), 0

    def enter(self, phase: str, step: int) -> None:
        """To be called when a phase begins, and with it the one before ends: a step by its own number."""
        order, before, _ = self._place
        now = time.monotonic()
        self.limits.took(before, now - self._begun)
        self._place, self._begun = (order + 1, phase, step), now

    def beat(self) -> Beat:
        self._number += 1
        order, phase, step = self._place
        return Beat(self._number, order, _collectives(), phase, step, self.work())


def _collectives() -> int:
    """Begun by this process so far, in all process groups that count."""
    count, groups = 0, cast(list[Any], timeouts.groups())  # torch's stubs do not know the method
    for group in groups:
        with suppress(RuntimeError):
            count += group._get_sequence_number_for_group()
    return count


@contextmanager
def watched(choice: HangChoice, world: World, folder: Path) -> Iterator[Reached]:
    """Look for hangs meanwhile. folder: of the stage, for the stacks. A hang ends this process, and its launcher says
    why."""
    reached = Reached(Limits(choice))
    opened = channel.opened(world) if choice.watch and world.size > 1 else None
    if opened is None:
        yield reached
        return
    logger.debug(f"{folder.name}: {reached.limits.words}")
    watch = (RankZero if world.first else OtherRank)(reached, opened, folder)
    try:
        yield reached
    finally:
        watch.end()
    dist.barrier()  # only then has no rank a question to rank 0's store any more, which goes with this watch


class RankWatch:
    """Of one rank."""

    def __init__(self, reached: Reached, opened: Channel, folder: Path):
        self.reached, self.channel, self.folder = reached, opened, folder
        self.rank, self.limits, self.members = opened.world.rank, reached.limits, opened.members()
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self, *work: Callable[[], None]) -> None:
        """Do each of them over and over, in a thread of its own."""
        self._threads = [threading.Thread(target=self._repeat, args=(each,), daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """What happens to the others is not looked at any more, and rank 0's store not asked."""
        self._ended.set()
        latest = time.monotonic() + OTHERS_HEAR
        for thread in self._threads:  # one that asks a rank 0 that was lost never ends
            thread.join(max(0.0, latest - time.monotonic()))

    def _repeat(self, work: Callable[[], None]) -> None:
        while not self._ended.wait(beat.SECONDS):
            try:
                work()
            except Exception as error:  # rank 0 has ended, say; a silent thread would look like a rank that is lost
                logger.debug(f"rank {self.rank}: looking for hangs: {error}")

    def tell(self, verdict: Verdict, speakers: int = 1) -> None:
        """Leave stack and message. speakers: ranks of each node that say it themselves where no launcher of ours is."""
        place = self.folder / "hangs" / verdict.folder
        heading = f"rank {self.rank} of {self.channel.world.size}, {self.reached.beat().place}"
        stacks.within(stacks.LONGEST, lambda: stacks.write(place, self.rank, f"{heading}: {verdict.what}"))
        longer = self.limits.key(self.reached.beat().phase)
        told = (
            f"{verdict.what}; the stacks of those that answer are in {place}; run the command again to resume, with a "
            f"longer {longer} if nothing hung"
        )
        aloud = int(os.environ.get("LOCAL_RANK", "0")) < speakers
        stacks.within(stacks.LONGEST, lambda: launcher.leave_message(FaultError(told), aloud))


class RankZero(RankWatch):
    """Sees all."""

    def __init__(self, reached: Reached, opened: Channel, folder: Path):
        super().__init__(reached, opened, folder)
        self._observer = Observer(range(opened.world.size), time.monotonic())
        self.begin(self._look)

    def _look(self) -> None:
        own = self.reached.beat()
        self.channel.say(own)
        self._observer.see(self.channel.all_beats(), time.monotonic())
        verdict = judgement.judge(self._observer, self.members, time.monotonic(), self.limits.standstill)
        if verdict is None:
            self.channel.publish(State(own.number))
        else:
            self._end_all(verdict, own.number)

    def _end_all(self, verdict: Verdict, number: int) -> NoReturn:
        self.tell(verdict)
        self.channel.publish(State(number, verdict))
        latest = time.monotonic() + OTHERS_HEAR
        while self.channel.told() < verdict.answering - 1 and time.monotonic() < latest:
            time.sleep(0.02)
        os._exit(FAULT)


class OtherRank(RankWatch):
    """Sees rank 0. Its exchange stands still where rank 0 does, so another thread looks."""

    def __init__(self, reached: Reached, opened: Channel, folder: Path):
        super().__init__(reached, opened, folder)
        self._observer, self._state = Observer(range(1), time.monotonic()), State(0)
        self.begin(self._exchange, self._look)

    def _exchange(self) -> None:
        self.channel.say(self.reached.beat())
        self._state = self.channel.answer()
        if self._state.verdict is not None:
            self.tell(self._state.verdict)
            self.channel.tell()
            os._exit(FAULT)

    def _look(self) -> None:
        own, first = self.reached.beat(), Beat(self._state.number, 0, 0, "start", 0)
        self._observer.see({0: first}, time.monotonic())
        allowed = self.limits.standstill(own.phase)
        what = judgement.judge_first(self._observer, self.members, own, time.monotonic(), allowed)
        if what is not None:
            self.tell(Verdict(what, own.folder, 0), speakers=2)
            os._exit(FAULT)
