"""What a stage measures, for programs that draw it: TensorBoard's event files, and runs of Weights & Biases.

`metrics.jsonl` stays the record. A tracker is told each of its lines under the names of MosaicML Composer
(`composer_names.py`), as it is written; what a start does again, no tracker shows twice.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec

from pipeline.config.schema import TrackerName
from pipeline.errors import UserError, one_line
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import TrainFacts
from pipeline.records.stage_records import MetricsRecord
from pipeline.training.trackers import offline_wandb, tensorboard
from pipeline.training.trackers.composer_names import ComposerNames
from pipeline.training.trackers.tracker import Opening, Tracker

logger = logging.getLogger(__name__)

OPENERS: Mapping[TrackerName, Callable[[Opening], Tracker]] = {
    "tensorboard": tensorboard.opened,
    "wandb": offline_wandb.opened,
}
"""By the name in a config, which is that of the package too."""


def require(names: tuple[TrackerName, ...]) -> None:
    """Raises UserError for a tracker whose package is not installed. A folder of its name, which wandb leaves wherever
    it is used, is no package."""
    for name in names:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise UserError(f"trackers: {name} needs the package '{name}'; pip install -e '.[tracking]'")


class Trackers:
    """The open trackers of a stage. One that fails is told once, and done without: the training goes on."""

    def __init__(self, names: ComposerNames | None = None):
        self._names = names
        self._trackers: dict[TrackerName, Tracker] = {}

    def open(self, name: TrackerName, opening: Opening) -> None:
        """Raises UserError, as the tracker's opener says."""
        with self._done_without(name):
            self._trackers[name] = OPENERS[name](opening)

    def add(self, record: MetricsRecord) -> None:
        """Tell every tracker a record that metrics.jsonl has been told."""
        if self._names is not None:
            values = self._names.of(record)
            for name, tracker in list(self._trackers.items()):
                with self._done_without(name):
                    tracker.write(record.step, values)

    def close(self) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._done_without(name):
                tracker.close()

    @contextmanager
    def _done_without(self, name: TrackerName) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of a disk, of a service that has ended: each library raises kinds of its own
            self._trackers.pop(name, None)
            logger.warning(f"tracker {name}: {one_line(error)}; it is told no more until the next start")


@contextmanager
def tracked(folder: StageFolder, names: tuple[TrackerName, ...], run: str, kind: str, step: int) -> Iterator[Trackers]:
    """The trackers of a stage that has begun, and whose metrics end at `step`, from which it goes on; -1: it begins.
    run: the run's name; kind: of the data, text or images. Raises UserError where a package is missing."""
    facts = folder.facts if names else None
    if not isinstance(facts, TrainFacts):
        yield Trackers()
        return
    require(names)
    composer_names = ComposerNames(facts, kind)
    earlier = [(record.step, composer_names.of(record)) for record in folder.metrics]
    about = facts.model_dump(mode="json", include={"model", "family", "sizes", "parameters", "settings", "schedule"})
    trackers = Trackers(composer_names)
    try:
        for name in names:
            trackers.open(name, Opening(folder.path, run, facts.name, step, earlier, about))
        yield trackers
    finally:
        trackers.close()
