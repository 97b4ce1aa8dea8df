"""Which samples the steps of a stage take: their own, until a rewind leaves some out."""

from collections.abc import Iterable

from pipeline.records.event_records import EventRecord


class DataOrder:
    """A function of the stage's rewinds, in the order in which they were made.

    A rewind to step k says which step's samples step k takes from then on; the steps behind it take those that follow.
    It replaces the rewinds to later steps, whose samples it leaves out.
    """

    def __init__(self, rewinds: Iterable[EventRecord] = ()):
        self._all = [(event.back_to or 0, event.data_step or 0) for event in rewinds]
        self._valid: list[tuple[int, int]] = []
        for back_to, data_step in self._all:
            self._valid = [each for each in self._valid if each[0] < back_to] + [(back_to, data_step)]

    def data_step(self, step: int) -> int:
        """The step of an undisturbed run that takes the samples of `step`; both count from 0."""
        shifts = [data_step - back_to for back_to, data_step in self._valid if back_to <= step]
        return step + (shifts[-1] if shifts else 0)

    def read_before(self, step: int) -> int:
        """The step of an undisturbed run that takes the samples behind all that the first `step` steps have taken, or
        left out."""
        return self.data_step(step - 1) + 1 if step else 0

    def rewinds_to(self, step: int) -> int:
        return sum(back_to == step for back_to, _ in self._all)
