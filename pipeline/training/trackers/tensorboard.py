"""TensorBoard's event files, in the folder `tensorboard` of a stage."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.training.trackers.tracker import Opening, Values

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER, SUFFIX = "tensorboard", ".composer"
"""SUFFIX: of files with Composer's names, which earlier releases did not write."""
LONGEST_WAIT = 5.0
"""Seconds for which a start waits for its file to be named behind those of earlier ones."""


class TensorBoard:
    def __init__(self, writer: "SummaryWriter"):
        self._writer = writer

    def write(self, step: int, values: Values) -> None:
        """What is told is in the file when this returns: a process that is killed loses none of it."""
        self.put(step, values)
        self._writer.flush()

    def put(self, step: int, values: Values) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def opened(opening: Opening) -> TensorBoard:
    """A further event file. Readers drop what earlier ones hold behind the step from which the stage goes on. The first
    one holds what was measured before it, too."""
    from torch.utils.tensorboard import SummaryWriter

    folder = opening.folder / FOLDER
    first = not list(folder.glob(f"events.*{SUFFIX}"))
    _wait_for_a_later_second(folder)
    tracker = TensorBoard(SummaryWriter(str(folder), purge_step=opening.step + 1, filename_suffix=SUFFIX))
    for step, values in opening.earlier if first else []:
        tracker.put(step, values)
    return tracker


def _wait_for_a_later_second(folder: Path) -> None:
    """Event files are named after the second in which they begin, and read in that order."""
    names = (re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.glob("events.*"))
    newest = max((int(name[1]) for name in names if name), default=0)
    time.sleep(min(max(0.0, newest + 1 - time.time()), LONGEST_WAIT))
