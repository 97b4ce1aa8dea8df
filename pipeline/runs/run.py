"""A whole run: prepare, every stage in turn, report. Finished stages are skipped, an interrupted one resumes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import dump
from pipeline.config.schema import Config, ExpandStage, FitStage, Stage, TrainStage
from pipeline.durations import seconds
from pipeline.errors import Preempted
from pipeline.records import run_folder
from pipeline.records.run_folder import StageFolder
from pipeline.runs.first_node import OnFirst, dividing_work
from pipeline.runs.trainings import Trainings, possible_ranks, ranks_of
from pipeline.training import preemption
from pipeline.training.environment import Launched
from pipeline.training.fingerprint import Fingerprint
from pipeline.training.launcher import Nodes, Start

if TYPE_CHECKING:
    from pipeline.checkpoints import CheckpointLayout
    from pipeline.expansion.planning import ExpansionPlan

logger = logging.getLogger(__name__)


def run(config: Config, start: Start = Nodes()) -> None:
    """Everything the config asks for, in order. Raises UserError."""
    all_stages(config, start)
    if start.first:
        report([config.path])


def all_stages(config: Config, start: Start = Nodes(), behind: Callable[[str], None] = lambda name: None) -> None:
    """Every stage in order. behind: told the name of each that has ended, or had. Raises UserError."""
    with _prepared_run(config, start, config.stages) as on_first:
        trainings = Trainings(config, start, on_first)
        for stage in config.stages:
            preemption.FORWARDING.stop_if_asked()
            if start.alone and preemption.time_is_up():  # several would not agree; the next step's do
                raise Preempted(f"stopped by max_time before stage '{stage.name}'")
            _run_stage(config, stage, start, on_first, trainings)
            behind(stage.name)


def stage_alone(config: Config, name: str, start: Start = Nodes()) -> None:
    """One stage of a run, or the fit of one, preparing the data first where that has not been done. Raises
    UserError."""
    stage = next((fit for fit in _fits(config) if fit.name == name), None) or config.stage(name)
    with _prepared_run(config, start, [stage]) as on_first:
        _run_stage(config, stage, start, on_first, Trainings(config, start, on_first))


def fit_alone(config: Config, stage: ExpandStage, start: Start = Nodes()) -> None:
    """The fit of an expansion, whose target may be another than a model of the config's sizes. Raises UserError."""
    from pipeline import data

    preemption.set_deadline(None if config.max_time is None else seconds(config.max_time))
    _check_before_data(config, start)
    fit, folder = config.fit_of(stage), config.path / "data"
    with _locked(config, start), dividing_work(config.path, start) as on_first:
        on_first(lambda: data.prepare(config.data, config.seed, folder), lambda: (folder / "data.json").exists())
        run_folder.write_text(config.path / "config.yaml", dump(config))
        _run_stage(config, fit, start, on_first, Trainings(config, start, on_first))


def prepare_alone(config: Config, start: Start = Nodes()) -> None:
    """The data of a run, and no stage. Raises UserError."""
    with _prepared_run(config, start, []):
        pass


@contextmanager
def _prepared_run(config: Config, start: Start, stages: Sequence[Stage | FitStage]) -> Iterator[OnFirst]:
    """The run folder, locked, its data prepared, the whole config checked against it: mistakes in the last stage are
    seen before the first one trains. stages: those that will run."""
    preemption.set_deadline(None if config.max_time is None else seconds(config.max_time))
    if start.alone:  # what is refused leaves no folder; of several nodes the first leaves its reason there
        _check_before_data(config, start)
    with _locked(config, start), dividing_work(config.path, start) as on_first:
        _prepare(config, start, stages, on_first)
        yield on_first


def _locked(config: Config, start: Start) -> AbstractContextManager[None]:
    """Every node locks the run folder. Of another launcher's processes rank 0 does, for all."""
    if isinstance(start, Nodes):
        return run_folder.exclusive(config.path, start.rank)
    return run_folder.exclusive(config.path) if start.first else nullcontext()


def _prepare(config: Config, start: Start, stages: Sequence[Stage | FitStage], on_first: OnFirst) -> None:
    from pipeline import data
    from pipeline.runs import preflight
    from pipeline.training import length

    folder = config.path / "data"
    if isinstance(start, Launched) and config.processes not in ("auto", start.local_world_size):
        logger.info("processes: %s counts where no launcher has started them, not here", config.processes)
    if not start.alone:
        _check_before_data(config, start)
    on_first(
        lambda: preflight.checkpoints_fit(config, stages, ranks_of(config, start)),
        lambda: preflight.checkpoints_whole(config, stages),
    )
    on_first(lambda: data.prepare(config.data, config.seed, folder), lambda: (folder / "data.json").exists())
    preflight.after_data(config)
    on_first(lambda: _reopen(config, stages), lambda: not any(length.goes_on(config, stage) for stage in stages))
    if start.first:
        run_folder.write_text(config.path / "config.yaml", dump(config))


def _reopen(config: Config, stages: Sequence[Stage | FitStage]) -> None:
    """Have the stages that have ended, and of which the config asks more by now, go on."""
    from pipeline.training import length

    for stage in stages:
        length.reopen(config, stage)


def _check_before_data(config: Config, start: Start) -> None:
    from pipeline.runs import preflight

    preflight.before_data(config, possible_ranks(config, start), start.allowed)
    if start.first:
        preflight.trackers_installed(config)


def _run_stage(config: Config, stage: Stage | FitStage, start: Start, on_first: OnFirst, trainings: Trainings) -> None:
    """Run a stage unless it is finished."""
    folder = StageFolder(config.path / stage.name)
    if folder.finished:
        logger.info("%s: finished already, skipped", stage.name)
    elif isinstance(stage, ExpandStage):
        if learning := _fit_before(config, stage):
            _run_stage(config, learning, start, on_first, trainings)
        on_first(lambda: _expand(config, stage, folder, start), lambda: folder.finished)
    else:
        trainings.train(stage)
        on_first(
            lambda: None, lambda: folder.finished
        )  # rank 0 writes that, and the next stage may start from this one


def _fits(config: Config) -> Iterator[FitStage]:
    for stage in config.stages:
        if isinstance(stage, ExpandStage) and (fit := _fit_before(config, stage)):
            yield fit


def _fit_before(config: Config, stage: ExpandStage) -> FitStage | None:
    from pipeline.expansion import fit

    return fit.of_expansion(config, stage)


def _expand(config: Config, stage: ExpandStage, folder: StageFolder, start: Start) -> None:
    from pipeline.expansion import expand

    plan, sizes = _plan_expansion(config, stage, start), config.models[stage.model]
    shown = {"layers": sizes.layers, "hidden": sizes.hidden, "heads": sizes.heads, "mlp": sizes.mlp_units}
    fingerprint = Fingerprint.of(config, stage).settings()
    facts = expand.describe(plan, fingerprint, stage.name, stage.model, stage.source, shown)
    logger.info("%s: %s -> '%s' by method '%s'", stage.name, plan.source, stage.model, stage.method.name)
    expand.into_stage(plan, folder, facts, config.hash)


def _plan_expansion(config: Config, stage: ExpandStage, start: Start) -> "ExpansionPlan":
    from pipeline import checkpoints, models
    from pipeline.data import data_of
    from pipeline.expansion import fit, planning
    from pipeline.expansion import target as targets
    from pipeline.runs import preflight
    from pipeline.training.start import origin

    reader, fitted = next(iter(config.continued_by(stage.name)), None), fit.fitted(config, stage)
    source = fitted.source if fitted and fitted.source else origin(config, stage.source)
    _, small = models.read_config(checkpoints.config_file(checkpoints.locate(source)))
    facts = data_of(config).facts
    return planning.plan_expansion(
        source,
        targets.of_sizes(small, config.models[stage.model], facts),
        preflight.options(stage, config.seed),
        layout_for(stage, reader, ranks_of(config, start)),
        moments=stage.optimizer_state,
        continued_by=reader.optimizer if reader else None,
        fitted=fitted,
    )


def layout_for(stage: ExpandStage, reader: TrainStage | None, ranks: int) -> "CheckpointLayout":
    """The layout in which an expansion is written: that of the training stage behind it, native shards of its ZeRO
    stage and ranks. Without ZeRO there is nothing to shard but a state that has grown."""
    from pipeline.checkpoints.layouts import HUGGING_FACE, CheckpointLayout

    if reader is None or (reader.zero_stage == 0 and stage.optimizer_state == "reset"):
        return CheckpointLayout(HUGGING_FACE.name)
    return CheckpointLayout.of(reader, ranks)


def report(runs: list[Path], out: Path | None = None, target: float | None = None) -> None:
    """Write report.html and report.json into `out`, by default the first run's folder. Raises UserError."""
    from pipeline import report as reporting

    content = reporting.build(runs, target=target)
    page = reporting.write(content, out or runs[0])
    broken = any(run.warnings for run in content.runs)
    logger.log(logging.WARNING if broken else logging.INFO, "%s", reporting.summary(content, page))
