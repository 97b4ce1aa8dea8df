"""The training stages of a run: its nodes meet, bring the checkpoint into the layout that they need, train, and start
again after a fault. Where another launcher has started the processes, that one starts them again."""

import logging
import time
from typing import TYPE_CHECKING

from pipeline.config import number_formats
from pipeline.config.schema import Config, TrainStage
from pipeline.durations import seconds
from pipeline.errors import Preempted, full_disk_explained
from pipeline.records import run_folder
from pipeline.records.run_folder import StageFolder
from pipeline.runs import restarts
from pipeline.runs.first_node import OnFirst, dividing_work
from pipeline.training import launcher, micro_batches
from pipeline.training.environment import Launched
from pipeline.training.launcher import Nodes, Seat, Start
from pipeline.training.preemption import StopRequest

if TYPE_CHECKING:
    from pipeline.training.meeting import Meeting

logger = logging.getLogger(__name__)


def ranks_of(config: Config, start: Start) -> int:
    """Processes that train together, where all nodes come."""
    if isinstance(start, Launched):
        return start.world_size
    return start.count * launcher.processes(config.processes)


def possible_ranks(config: Config, start: Start) -> list[int]:
    """The numbers of processes that may train together, the largest last: fewer where not all nodes are waited for."""
    most = ranks_of(config, start)
    if isinstance(start, Launched):
        return [most]
    return [most // start.count * count for count in range(start.least, start.count + 1)]


def reshard_start(config: Config, stage: TrainStage, start: Launched) -> None:
    """For a worker of a launcher that trains one stage only: rank 0 writes what the engines are to load where it is in
    another layout, the others wait. Raises UserError."""
    with dividing_work(config.path, start) as on_first:
        _reshard_start(config, stage, start.world_size, on_first)


class Trainings:
    """All those of one command."""

    def __init__(self, config: Config, start: Start, on_first: OnFirst):
        self.config, self.start, self.on_first = config, start, on_first
        self._places: _Places | None = None

    def train(self, stage: TrainStage) -> None:
        """Train a stage to its end. Raises UserError, FaultError, and Preempted."""
        if isinstance(self.start, Launched):
            _make_ready(self.config, stage, self.start.world_size, self.on_first)
            _train_here(self.config, stage, self.start)
        else:
            self._train_on(self.start, stage)

    def _train_on(self, nodes: Nodes, stage: TrainStage) -> None:
        folder, places = StageFolder(self.config.path / stage.name), self._places or _Places(self.config, nodes)
        self._places = places

        def attempt() -> None:
            if seat := places.next(stage, folder, self.on_first):
                _launch(self.config, stage, nodes, seat, self.on_first)

        restarts.until_done(attempt, folder, self.config.restarts, decides=nodes.first)


class _Places:
    """Where the nodes of a command find out which of them take part."""

    def __init__(self, config: Config, nodes: Nodes):
        self.nodes, self.workers = nodes, launcher.processes(config.processes)
        self._patience, self._begun = seconds(config.node_timeout), time.monotonic()
        self._meeting: Meeting | None = None

    def next(self, stage: TrainStage, folder: StageFolder, on_first: OnFirst) -> Seat | None:
        """That of this node at the next start, None where the others have trained the stage without it."""
        if self.nodes.alone:
            return Seat(stage.name)
        begun, seats = micro_batches.as_begun(stage, folder), list[Seat]()

        def come() -> bool:
            seat = meeting.seat(stage.name) if (meeting := self._reached()) else None
            seats.extend([seat] if seat else [])
            return bool(seats) or folder.finished

        def fits(count: int) -> bool:
            return micro_batches.divide(begun, count * self.workers)

        on_first(lambda: seats.append(self._served().seat_all(stage.name, fits)), come)
        return seats[0] if seats else None

    def _served(self) -> "Meeting":
        """On node 0, which serves the place from its first training on. Raises UserError where it cannot."""
        from pipeline.training.meeting import Meeting

        self._meeting = self._meeting or Meeting(self.nodes, self._patience)
        return self._meeting

    def _reached(self) -> "Meeting | None":
        """On another node; None until node 0 serves it, which has data to look at before, or stops there and says why.
        Raises UserError where that takes longer than anything should."""
        from pipeline.training import meeting

        if self._meeting is None and (
            meeting.is_served(self.nodes) or time.monotonic() - self._begun > meeting.LONGEST_WAIT
        ):
            self._meeting = meeting.Meeting(self.nodes, self._patience)
        return self._meeting


def _make_ready(config: Config, stage: TrainStage, ranks: int, on_first: OnFirst) -> None:
    """Have the engines find what they load, and say what is trained."""
    from pipeline.expansion.fit import subject
    from pipeline.training.stage import facts_line, plan_training

    _reshard_start(config, stage, ranks, on_first)
    plan = plan_training(config, stage, subject(config, stage))
    how = f"{ranks} ranks, ZeRO-{stage.zero_stage}, {number_formats.words(stage)}, attention {plan.stage.attention}"
    logger.info("%s: %s, %s", stage.name, facts_line(plan, ranks), how)


def _reshard_start(config: Config, stage: TrainStage, ranks: int, on_first: OnFirst) -> None:
    from pipeline.training import resharded_start

    on_first(
        lambda: resharded_start.prepare(config, stage, ranks), lambda: resharded_start.is_prepared(config, stage, ranks)
    )


def _launch(config: Config, stage: TrainStage, nodes: Nodes, seat: Seat, on_first: OnFirst) -> None:
    """Train in workers of this command."""
    workers = launcher.processes(config.processes)
    _make_ready(config, stage, seat.count * workers, on_first)
    command = ["train", str(config.path / "config.yaml"), "--stage", stage.name]
    allowed = [f"--allow={setting}" for setting in sorted(nodes.allowed)]
    launcher.launch([*command, *allowed], workers, nodes, seat, config.path)


def _train_here(config: Config, stage: TrainStage, start: Launched) -> None:
    """Be one worker of a training stage in this process, whose process group goes on to the next one. The lock comes
    behind the meeting with rank 0, which has looked for other runs' workers before it."""
    import torch.distributed as dist

    from pipeline.expansion.fit import subject
    from pipeline.training import engine, loop, process_group

    request = StopRequest.of_this_process()
    with request.joining():
        world = process_group.join(config.hang)
    with run_folder.share(config.path, start.node_rank), full_disk_explained(config.path):
        try:
            loop.run(subject(config, stage), world, request)
        except Preempted:
            dist.barrier()  # a launcher that sees one end may kill the others
            raise
    engine.free()
