"""Which faults a run meets, and when: all of it follows from a seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.soak.chains import SAVE_EVERY, STEPS, TRAINED, Variant
from tests.soak.faults import DAMAGE, KINDS, TRAINING

WEIGHTS = {"small": 7, "reshard": 3, "grown": 4, "large": 7}
"""How the faults of a run are shared out to its parts."""
PLACES = {"reshard": ["resharding"], "grown": ["expanding"]}
"""Phases of a part; of a training stage they are drawn."""


@dataclass(frozen=True)
class Planned:
    """A fault of `kind` in `part` of a run. phase: what the command is to be at. steps: training stages only, not
    before the first, at once where the second is reached. share: of the phase's duration, 0 to 1, at which it comes."""

    kind: str
    part: str
    phase: str
    steps: tuple[int, int]
    share: float


def plan(variant: Variant, count: int, kinds: Sequence[str], seed: str) -> list[Planned]:
    """`count` faults of one run, in the order of their moments."""
    draw = random.Random(seed)
    deck = _Deck(draw, kinds)
    parts = [list(_of_part(part, number, deck, draw)) for part, number in shared_out(variant, count)]
    return [fault for faults in parts for fault in sorted(faults, key=_late)]


def _late(fault: Planned) -> tuple[bool, float]:
    """In what is done once only, faults that end the command come first, and early ones, so that there is something
    left for the others; those of a training stage stay in the order of their steps."""
    return (not KINDS[fault.kind].ends, fault.share) if fault.part not in TRAINED else (False, 0.0)


def shared_out(variant: Variant, count: int) -> Iterator[tuple[str, int]]:
    """Parts of a run with their numbers of faults, which add up to `count`."""
    parts, given, weight = variant.parts, 0, 0
    total = sum(WEIGHTS[part] for part in parts)
    for part in parts:
        weight += WEIGHTS[part]
        until = round(count * weight / total)
        yield part, until - given
        given = until


def _of_part(part: str, number: int, deck: "_Deck", draw: random.Random) -> Iterator[Planned]:
    for position in range(number):
        if part in TRAINED:
            first, last = (1 + round((STEPS - 3) * at / number) for at in (position, position + 1))
            phase = draw.choices(["starting", *TRAINING], [2, 5, 3])[0]
            steps = (draw.randint(first, max(first, last - 1)), last)
        else:
            phase, steps = draw.choice(PLACES[part]), (0, 0)
        damaging = part in TRAINED and steps[0] > 2 * SAVE_EVERY
        yield Planned(deck.deal(phase, damaging), part, phase, steps, draw.random())


class _Deck:
    """Kinds of faults, dealt so that each comes as often as its phases allow."""

    def __init__(self, draw: random.Random, kinds: Sequence[str]):
        self._draw = draw
        self._dealt = dict.fromkeys(kinds, 0)

    def deal(self, phase: str, damaging: bool) -> str:
        possible = [kind for kind in self._dealt if phase in KINDS[kind].phases and (damaging or kind not in DAMAGE)]
        fewest = min(self._dealt[kind] for kind in possible)
        kind = self._draw.choice([kind for kind in possible if self._dealt[kind] == fewest])
        self._dealt[kind] += 1
        return kind
