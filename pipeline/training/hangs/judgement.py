"""From the beats of all ranks to a sentence: whether training stands still, and who has not arrived."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.training.hangs.beat import Beat

SILENCE = 3.0
"""Seconds without a beat after which a rank does not answer any more; half of a standstill that is shorter."""
GAP = 3.0
"""Seconds between two looks after which the looking process was stopped itself, as Slurm suspends a job."""
MOST_NAMED = 8
"""Ranks that a sentence names one by one."""


@dataclass(frozen=True)
class Member:
    """One rank. nodes: how many there are."""

    rank: int
    node: int
    host: str
    nodes: int

    @property
    def machine(self) -> str:
        return f"node {self.node} ({self.host})"

    def __str__(self) -> str:
        return f"rank {self.rank}" + (f" of {self.machine}" if self.nodes > 1 else "")


@dataclass(frozen=True)
class Verdict:
    """A hang. folder: a name for the place of the stacks. answering: the ranks that can be told."""

    what: str
    folder: str
    answering: int


class Observer:
    """What one process has seen of others. Times are seconds of its own clock."""

    def __init__(self, ranks: Sequence[int], now: float):
        self.ranks = ranks
        self.beats: dict[int, Beat] = {}
        self._heard, self._progressed = dict.fromkeys(ranks, now), dict.fromkeys(ranks, now)
        self._looked, self._worked = now, -math.inf

    def see(self, beats: dict[int, Beat], now: float) -> None:
        """Take in the newest beats. What this process slept through is nobody's fault."""
        if now - self._looked > GAP:
            for times in (self._heard, self._progressed):
                times.update({rank: time + now - self._looked for rank, time in times.items()})
            self._worked += now - self._looked
        self._looked = now
        for rank, beat in beats.items():
            before = self.beats.get(rank)
            if before is None or beat.number != before.number:
                self._heard[rank] = now
            if before is None or beat.progress != before.progress:
                self._progressed[rank] = now
            if before is not None and beat.work != before.work:
                self._worked = now
        self.beats |= beats

    def standstill(self, now: float) -> tuple[int, float]:
        """The rank that has made no progress for longest, and seconds; none while any rank is at work alone."""
        rank = min(self.ranks, key=lambda rank: self._progressed[rank])
        return rank, now - max(self._progressed[rank], self._worked)

    def silence(self, rank: int, now: float) -> float:
        """Seconds."""
        return now - self._heard[rank]

    def silent(self, now: float, seconds: float) -> list[int]:
        """Ranks without a beat for at least so long."""
        return [rank for rank in self.ranks if self.silence(rank, now) >= seconds]

    def furthest(self) -> Beat:
        """Of all ranks' newest beats."""
        return max(self.beats.values(), key=lambda beat: beat.progress)

    def behind(self) -> list[int]:
        """Ranks that have not come to what others wait in."""
        furthest = self.furthest().progress
        return [rank for rank, beat in self.beats.items() if beat.progress < furthest]


def judge(observer: Observer, members: Sequence[Member], now: float, allowed: Callable[[str], float]) -> Verdict | None:
    """What rank 0 makes of all beats. members: by rank. allowed: seconds that a phase may stand still."""
    if not observer.beats:
        return None
    rank, seconds = observer.standstill(now)
    silent = observer.silent(now, min(SILENCE, seconds / 2))
    last = observer.furthest() if rank in silent else observer.beats[rank]  # it has gone on behind its last beat
    if seconds <= allowed(last.phase):
        return None
    behind = [rank for rank in observer.behind() if rank not in silent]
    where = f"for {seconds:.0f} s in {last.place}"
    return Verdict(_sentence(members, silent, behind, where), last.folder, len(members) - len(silent))


def _sentence(members: Sequence[Member], silent: Sequence[int], behind: Sequence[int], where: str) -> str:
    lost = _lost_nodes(members, silent)
    if lost and {members[rank].node for rank in silent} == {member.node for member in lost}:
        machines = _enumerated([member.machine for member in lost])
        return f"no rank of {machines} has answered {where}: the node, or the link to {members[0].machine}, is lost"
    if silent:
        named = _enumerated([str(members[rank]) for rank in silent])
        return f"{named} {_has(silent)} given no sign of life {where}: stopped, or lost"
    if behind:
        named = _enumerated([str(members[rank]) for rank in behind])
        return f"{named} {_has(behind)} not come to what the others wait in {where}"
    return f"all {len(members)} ranks have waited in the same place {where}: a link between two of them is lost"


def _lost_nodes(members: Sequence[Member], silent: Sequence[int]) -> list[Member]:
    """The first rank of every node that is silent as a whole. Rank 0's is not."""
    alive = {member.node for member in members if member.rank not in set(silent)}
    return list({member.node: member for member in reversed(members) if member.node not in alive}.values())[::-1]


def _has(ranks: Sequence[int]) -> str:
    return "has" if len(ranks) == 1 else "have"


def _enumerated(names: Sequence[str]) -> str:
    shown = list(names[:MOST_NAMED])
    if len(names) > MOST_NAMED:
        shown.append(f"{len(names) - MOST_NAMED} more")
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def judge_first(observer: Observer, members: Sequence[Member], own: Beat, now: float, allowed: float) -> str | None:
    """What another rank, at `own`, makes of rank 0's silence. members: rank 0 and itself."""
    seconds, (first, here) = observer.silence(0, now), members
    if seconds <= allowed:
        return None
    link = "" if first.node == here.node else f", or the link to it from {here.machine}"
    return f"{first} has given no sign of life for {seconds:.0f} s in {own.place}: stopped, or lost{link}"
