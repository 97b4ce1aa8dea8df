"""What a rank says of its progress, twice a second."""

from dataclasses import dataclass

SECONDS = 0.5
"""Between two beats of a rank."""
PLACES = {
    "start": "the start",
    "step": "step {step}",
    "evaluation": "the evaluation at step {step}",
    "save": "the save at step {step}",
    "publication": "the writing of the save before step {step}",
    "end": "the end",
}
"""The phases of a training stage, in words."""


@dataclass(frozen=True)
class Beat:
    """number: counts the beats. order: counts the phases that the rank has begun, the same ones on all ranks.
    collectives: counts those that it has joined, in all process groups. work: another number while it computes or
    writes, alone; who waits for that does not hang."""

    number: int
    order: int
    collectives: int
    phase: str
    step: int
    work: int = 0

    @classmethod
    def parse(cls, text: str) -> "Beat":
        number, order, collectives, phase, step, work = text.split()
        return cls(int(number), int(order), int(collectives), phase, int(step), int(work))

    def __str__(self) -> str:
        return f"{self.number} {self.order} {self.collectives} {self.phase} {self.step} {self.work}"

    @property
    def progress(self) -> tuple[int, int]:
        """What goes up as long as nothing hangs."""
        return self.order, self.collectives

    @property
    def place(self) -> str:
        return PLACES[self.phase].format(step=self.step)

    @property
    def folder(self) -> str:
        """A folder's name for what is found there."""
        return f"{self.phase}-{self.step:07d}"
