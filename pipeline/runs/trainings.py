"""The training stages of a run on the nodes that it has: they meet, train together, and start again after a fault."""

import logging
from collections.abc import Callable

from pipeline.checkpoints import publish
from pipeline.config.schema import Config, TrainStage
from pipeline.durations import seconds
from pipeline.errors import Fault
from pipeline.records.run_folder import StageFolder, step_of
from pipeline.training.launcher import Nodes, Seat
from pipeline.training.meeting import Meeting

logger = logging.getLogger(__name__)

OnFirst = Callable[[Callable[[], object], Callable[[], bool]], object]
"""Has node or rank 0 do offline work (the first argument) while the others wait until it is done (the second), on
files: no collective is open meanwhile. Raises UserError there when the first one fails."""


class Trainings:
    """Of a run's config, on these nodes."""

    def __init__(self, config: Config, nodes: Nodes, on_first: OnFirst):
        self.config, self.nodes, self.on_first = config, nodes, on_first
        self._meeting: Meeting | None = None

    def train(self, stage: TrainStage, fits: Callable[[int], bool], attempt: Callable[[Seat], None]) -> None:
        """Have `attempt` train the stage, again after each fault: `restarts` times in a row without a newer checkpoint
        between. fits: whether so many nodes can share the batch. Raises what it raises in the end, and UserError."""
        folder, left = StageFolder(self.config.path / stage.name), self.config.restarts
        newest = publish.newest(folder.checkpoints)
        while seat := self._seat(stage, folder, fits):
            try:
                return attempt(seat)
            except Fault as fault:
                before, newest = newest, publish.newest(folder.checkpoints)
                left = (left if newest == before else self.config.restarts) - 1
                if self.config.restarts == 0 or (left < 0 and self.nodes.first):  # the others follow node 0
                    raise
                step, more = (step_of(newest) if newest else 0), f" (restarts left: {left})" if self.nodes.first else ""
                logger.warning(f"{stage.name}: {fault.what}; starting again from step {step}{more}")

    def _seat(self, stage: TrainStage, folder: StageFolder, fits: Callable[[int], bool]) -> Seat | None:
        """The place of this node at the next start, None where the others have trained the stage without it."""
        if self.nodes.alone:
            return Seat(stage.name)
        self._meeting = meeting = self._meeting or Meeting(self.nodes, seconds(self.config.node_timeout))
        seats: list[Seat] = []

        def come() -> bool:
            seats.extend(seat for seat in [meeting.seat(stage.name)] if seat)
            return bool(seats) or folder.finished

        self.on_first(lambda: seats.append(meeting.seat_all(stage.name, fits)), come)
        return seats[0] if seats else None
