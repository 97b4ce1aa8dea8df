"""How long a phase may stand still, learnt from the run."""

from collections import deque
from statistics import median

from pipeline.config.hang import HangChoice
from pipeline.durations import seconds

STEPS = 20
"""The last steps, whose median counts."""
MARGIN = 2.0
"""Seconds that it takes to see that a rank stands still, and to tell all: four beats."""


class Limits:
    """Of the phases of one stage. One thread tells what they took, others ask."""

    def __init__(self, choice: HangChoice):
        self._choice = choice
        self._steps: deque[float] = deque(maxlen=STEPS)
        self._usual: dict[str, float] = {}

    def took(self, phase: str, seconds: float) -> None:
        """Learn from a phase that has ended."""
        if phase == "step":
            self._steps.append(seconds)
            seconds = median(self._steps)
        self._usual[phase] = seconds

    def of(self, phase: str) -> float:
        """Seconds within which a hang in `phase` is to be found."""
        least = {"step": self._choice.step, "evaluation": self._choice.pause, "save": self._choice.pause}.get(phase)
        if least is None or phase not in self._usual:
            return seconds(self._choice.first)
        return max(seconds(least), self._choice.factor * self._usual[phase])

    def key(self, phase: str) -> str:
        """The key of the config that `of` goes by."""
        learnt = {"step": "hang.step", "evaluation": "hang.pause", "save": "hang.pause"}
        return learnt.get(phase, "hang.first") if phase in self._usual else "hang.first"

    def standstill(self, phase: str) -> float:
        """Seconds without progress that are a hang."""
        limit = self.of(phase)
        return max(limit - MARGIN, limit / 2)

    @property
    def words(self) -> str:
        """For the log."""
        choice = self._choice
        return (
            f"a hang is a step that stands still for {choice.step} or {choice.factor:g} median steps, an evaluation or "
            f"a save for {choice.pause} or {choice.factor:g} times the last one, the first of each and the start for "
            f"{choice.first}; collectives give up after {choice.collective}"
        )
