"""TensorBoard's event files, in the folder `tensorboard` of a stage.

Every start writes one that holds all that was measured before, in the place of those of earlier starts: so what is done
again appears once, and what was measured while nothing was tracked is there too.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.training.trackers.tracker import Opening, Values

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER, SUFFIX = "tensorboard", ".composer"
"""SUFFIX: of files with Composer's names, which earlier releases did not write."""


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
    """The stage's event file, with all that was measured before."""
    from torch.utils.tensorboard import SummaryWriter

    folder: Path = opening.folder / FOLDER
    for former in folder.glob(f"events.*{SUFFIX}"):
        former.unlink()
    tracker = TensorBoard(SummaryWriter(str(folder), filename_suffix=SUFFIX))
    for step, values in opening.earlier:
        tracker.put(step, values)
    return tracker
