"""What a tracker is to the training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

Values = Mapping[str, float]
"""What was measured, by name."""


class Tracker(Protocol):
    """Writes what it is told, in a form of its own."""

    def write(self, step: int, values: Values) -> None:
        """What was measured at `step`. Steps rise; only what a save took may come behind later steps."""

    def close(self) -> None:
        """Write all that is not written yet."""


@dataclass(frozen=True)
class Opening:
    """What a tracker begins from. folder: the stage's, in which it writes; run, stage: their names; step: from which
    the stage goes on, -1 from the beginning; earlier: what was measured until then, in order; about: the stage's
    settings, as JSON."""

    folder: Path
    run: str
    stage: str
    step: int
    earlier: Sequence[tuple[int, Values]]
    about: dict[str, Any]
