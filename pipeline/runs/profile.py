"""`lemon profile`: some steps of one training stage in real workers, measured; the run's folder stays as it is.

The workers train in a folder of their own, beside which the run's data and other stages lie as links; it is removed at
the end. A stage whose start is not there yet is measured with fresh weights, which cost the same.
"""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pipeline import data
from pipeline.accounting import budget
from pipeline.accounting.budget import Budget, Settings, Work
from pipeline.config import dump
from pipeline.config.fit import FitChoice
from pipeline.config.number_formats import words
from pipeline.config.schema import Config, ExpandStage, FitStage, TrainStage
from pipeline.data.prepared import prepared_before
from pipeline.records import run_folder
from pipeline.records.processes import PARENT
from pipeline.records.run_folder import StageFolder
from pipeline.training import launcher, micro_batches, settled
from pipeline.training.launcher import Nodes, Seat

if TYPE_CHECKING:
    from pipeline.training.engine import Engine
    from pipeline.training.process_group import World
    from pipeline.training.profiling import Measured
    from pipeline.training.stage import TrainingPlan

logger = logging.getLogger(__name__)

PREFIX = "lemon-profile-"
"""Of the names of temporary folders."""
BEGUN = ".begun"
"""In the folder aside, the stage as it has begun in the run."""


@dataclass(frozen=True)
class Wanted:
    """trace: the file for a trace of torch's profiler."""

    stage: str
    steps: int
    trace: Path | None = None


def launch(config: Config, wanted: Wanted, arguments: list[str]) -> None:
    """Have workers of this command measure, of which rank 0 prints. arguments: of such a worker, behind its config and
    stage. Raises UserError, and FaultError where a worker dies."""
    workers = launcher.processes(config.processes)
    micro_batches.size_of(config.training_stage(wanted.stage), workers)
    with _aside(config, wanted.stage) as copy:
        _require_data(config, copy.path / "data")
        file = copy.path / "config.yaml"
        run_folder.write_text(file, dump(copy))
        command = ["profile", str(file), "--stage", wanted.stage, *arguments]
        with _failures() as folder:
            launcher.launch(command, workers, Nodes(), Seat(wanted.stage), folder)


def work(config: Config, wanted: Wanted) -> Budget | None:
    """Be one of the workers, up to the result, which rank 0 gets. Raises UserError."""
    if PARENT in os.environ:  # the config is that of the folder aside
        return _measured(config, config.training_stage(wanted.stage), wanted)
    prepared_before(config.path / "data", config.data, config.seed)
    data.data_of(config)
    with _aside(config, wanted.stage) as copy:
        return _measured(copy, copy.training_stage(wanted.stage), wanted)


def leave() -> NoReturn:
    """End this worker, together with the others."""
    from pipeline.training import process_group

    process_group.leave()


def _require_data(config: Config, place: Path) -> None:
    """The run's data, which lie at `place`; where there are none yet they are made there, for this time alone. Raises
    UserError."""
    if not prepared_before(config.path / "data", config.data, config.seed):
        logger.info(f"{config.path}: no data are prepared; made for this profile alone (lemon prepare keeps them)")
        data.prepare(config.data, config.seed, place)


@contextmanager
def _failures() -> Iterator[Path]:
    """A folder in which workers leave why they failed, which stays where a message names a traceback in it."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        yield folder
    finally:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def _aside(config: Config, name: str) -> Iterator[Config]:
    """The same run in a folder of its own, where the stage has not begun and all else is the run's. Raises
    UserError."""
    stage = _startable(config, config.training_stage(name))
    targets = {stage.fit.target for stage in config.stages if isinstance(stage, ExpandStage) and stage.fit}
    others = {"data", *(each.name for each in config.stages), *filter(None, targets)} - {name}
    with tempfile.TemporaryDirectory(prefix=PREFIX) as place:
        for entry in sorted(others):
            if (config.path / entry).exists():
                (Path(place) / entry).symlink_to((config.path / entry).resolve())
        (Path(place) / BEGUN).symlink_to((config.path / name).resolve())
        stages = [_settled(each, stage) for each in config.stages]
        yield config.model_copy(update={"folder": place, "stages": stages})


def _settled(each: TrainStage | ExpandStage, stage: TrainStage) -> TrainStage | ExpandStage:
    """The entry of a config with what `stage` has settled, where it is this stage, or the expansion that it fits."""
    if each.name == stage.name:
        return stage
    if not isinstance(each, ExpandStage) or each.fit_name != stage.name:
        return each
    kept = {key: getattr(stage, key) for key in ("attention", "compile", "micro_batch")}
    return each.model_copy(update={"fit": (each.fit or FitChoice()).model_copy(update=kept)})


def _startable(config: Config, stage: TrainStage) -> TrainStage:
    """The stage with what it settled when it began, if it has; with fresh weights, where it starts from a stage that
    has not ended. Raises UserError."""
    from pipeline.training.start import origin

    folder = StageFolder(config.path / stage.name)
    stage = settled.as_begun(micro_batches.as_begun(stage, folder), folder).model_copy(update={"stop": None})
    before = next((each for each in config.stages if each.name == stage.origin), None)
    if isinstance(stage, FitStage) or not before or _ended(config, before):
        if stage.origin:
            origin(config, stage.origin)
        return stage
    logger.info(
        f"{stage.name}: '{before.name}' has not ended; measured with fresh weights of the sizes that the config names; "
        "a start with another table or head costs what that takes"
    )
    alone = {key: getattr(stage, key).model_copy(update={"continues": False}) for key in ("data", "schedule")}
    return stage.model_copy(update={"start": None, "rewarm": None, **alone})


def _ended(config: Config, stage: TrainStage | ExpandStage) -> bool:
    from pipeline.training.length import has_ended

    return has_ended(config, stage)


def _measured(config: Config, stage: TrainStage, wanted: Wanted) -> Budget | None:
    from pipeline.expansion.fit import subject
    from pipeline.training import machine_choices, optimizer_kernel, process_group
    from pipeline.training.engine import Engine
    from pipeline.training.profiling import MeasuredSteps, of_all_ranks
    from pipeline.training.stage import plan_training

    world, trained = process_group.join(config.hang), subject(config, stage)
    plan = machine_choices.settle(plan_training(config, stage, trained), world)
    begun = trained.begun(plan.model, plan.start, plan.stage.attention)
    kernel = optimizer_kernel.of_stage(plan.stage, StageFolder(config.path / BEGUN), world.device.type)
    built = Engine(begun, plan.stage, world, config.seed, kernel=kernel)
    measured = of_all_ranks(MeasuredSteps(plan, built, world).measure(wanted.steps, wanted.trace), world)
    settings, work = _settings(plan, built, world), _work(plan, world)
    built.close()
    return _budget(settings, work, measured, world) if world.first else None


def _settings(plan: "TrainingPlan", engine: "Engine", world: "World") -> Settings:
    from pipeline.training.hardware import describe

    stage = plan.stage
    return Settings(
        stage=stage.name,
        model=stage.model,
        origin=str(plan.start.resolve()) if plan.start else "fresh weights",
        device=describe(world.device.type),
        ranks=world.size,
        zero_stage=stage.zero_stage,
        micro_batch=engine.micro_batch,
        micro_batches=engine.accumulation,
        numbers=words(stage),
        attention=stage.attention,
        compile=stage.compile is True,
        activation_checkpointing=stage.activation_checkpointing,
    )


def _work(plan: "TrainingPlan", world: "World") -> Work:
    from pipeline.training.hardware import peak_of_all_ranks
    from pipeline.training.stage import step_flops

    flops = step_flops(plan.stage, plan.model, plan.cost, plan.making, world.size)
    return Work(
        samples=plan.stage.batch,
        tokens=plan.pace.tokens,
        flops=flops.train,
        again=flops.total - flops.train,
        peak=peak_of_all_ranks(world.device.type, plan.stage.precision, plan.stage.products).flops,
        peak_of="from data sheets" if world.device.type == "cuda" else "measured by matrix products",
    )


def _budget(settings: Settings, work: Work, ranks: "list[Measured]", world: "World") -> Budget:
    step, parts = budget.parts([measured.steps for measured in ranks])
    first, seconds = ranks[0], step.median
    return Budget(
        settings=settings,
        work=work,
        steps=len(first.steps),
        step=step,
        parts=parts,
        compile_seconds=first.compiled,
        samples_per_second=work.samples / seconds,
        tokens_per_second=work.tokens / seconds,
        mfu=budget.utilization(work.flops, seconds, work.peak),
        hfu=budget.utilization(work.flops + work.again, seconds, work.peak),
        memory=[measured.memory for measured in ranks],
        memory_of="allocated on the device" if world.device.type == "cuda" else "RssAnon",
        kernels=first.kernels,
        operators=first.operators,
    )
