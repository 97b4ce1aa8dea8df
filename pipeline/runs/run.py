"""A whole run: prepare, every stage in turn, report. Finished stages are skipped, an interrupted one resumes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import dump
from pipeline.config.schema import Config, ExpandStage, Stage, TrainStage
from pipeline.durations import seconds
from pipeline.errors import Preempted
from pipeline.records import run_folder
from pipeline.records.run_folder import StageFolder
from pipeline.runs import first_node
from pipeline.training import launcher, preemption
from pipeline.training.fingerprint import Fingerprint
from pipeline.training.launcher import Nodes

if TYPE_CHECKING:
    from pipeline.checkpoints import CheckpointLayout
    from pipeline.expansion.expand import ExpansionPlan

logger = logging.getLogger(__name__)

OnFirstNode = Callable[[Callable[[], object], Callable[[], bool]], object]
"""Has node 0 do offline work (the first argument) while the others wait until it is done (the second). Raises UserError
there when node 0 fails."""


def run(config: Config, nodes: Nodes = Nodes()) -> None:
    """Everything the config asks for, in order. Raises UserError."""
    with _prepared_run(config, nodes, config.stages) as on_first_node:
        for stage in config.stages:
            if preemption.time_is_up():
                raise Preempted(f"stopped by max_time before stage '{stage.name}'")
            _run_stage(config, stage, nodes, on_first_node)
        if nodes.rank == 0:
            report([config.path])


def stage_alone(config: Config, name: str, nodes: Nodes = Nodes()) -> None:
    """One stage of a run, preparing the data first where that has not been done. Raises UserError."""
    stage = config.stage(name)
    with _prepared_run(config, nodes, [stage]) as on_first_node:
        _run_stage(config, stage, nodes, on_first_node)


def prepare_alone(config: Config) -> None:
    """The data of a run, and no stage. Raises UserError."""
    with _prepared_run(config, Nodes(), []):
        pass


@contextmanager
def _prepared_run(config: Config, nodes: Nodes, stages: Sequence[Stage]) -> Iterator[OnFirstNode]:
    """The run folder, locked, its data prepared, the whole config checked against it: mistakes in the last stage are
    seen before the first one trains. stages: those that will run."""
    preemption.set_deadline(None if config.max_time is None else seconds(config.max_time))
    with run_folder.exclusive(config.path, nodes.rank), _first_node(config, nodes) as on_first_node:
        _prepare(config, nodes, stages, on_first_node)
        yield on_first_node


@contextmanager
def _first_node(config: Config, nodes: Nodes) -> Iterator[OnFirstNode]:
    if nodes.rank == 0:
        with first_node.at_work(config.path) if nodes.count > 1 else nullcontext():
            yield lambda action, done: action()
    else:
        watch = first_node.Watch(config.path)
        yield lambda action, done: watch.wait(done)


def _prepare(config: Config, nodes: Nodes, stages: Sequence[Stage], on_first_node: OnFirstNode) -> None:
    from pipeline import data
    from pipeline.runs import preflight

    folder = config.path / "data"
    ranks = nodes.count * launcher.processes(config.processes)
    preflight.before_data(config, ranks)
    preflight.checkpoints_fit(config, stages, ranks)
    on_first_node(lambda: data.prepare(config.data, config.seed, folder), lambda: (folder / "data.json").exists())
    preflight.after_data(config)
    if nodes.rank == 0:
        run_folder.write_text(config.path / "config.yaml", dump(config))


def _run_stage(config: Config, stage: Stage, nodes: Nodes, on_first_node: OnFirstNode) -> None:
    """Run a stage unless it is finished."""
    folder = StageFolder(config.path / stage.name)
    if folder.finished:
        logger.info("%s: finished already, skipped", stage.name)
    elif isinstance(stage, ExpandStage):
        on_first_node(lambda: _expand(config, stage, folder, nodes), lambda: folder.finished)
    else:
        _train(config, stage, nodes)


def _train(config: Config, stage: TrainStage, nodes: Nodes) -> None:
    from pipeline.training.stage import facts_line, plan_training

    workers = launcher.processes(config.processes)
    line, ranks = facts_line(plan_training(config, stage)), workers * nodes.count
    logger.info("%s: %s, %d ranks, ZeRO-%d, %s", stage.name, line, ranks, stage.zero_stage, stage.precision)
    launcher.launch(["train", str(config.path / "config.yaml"), "--stage", stage.name], workers, nodes, config.path)


def _expand(config: Config, stage: ExpandStage, folder: StageFolder, nodes: Nodes) -> None:
    from pipeline.expansion import expand

    plan, sizes = _plan_expansion(config, stage, nodes), config.models[stage.model]
    shown = {"layers": sizes.layers, "hidden": sizes.hidden, "heads": sizes.heads, "mlp": sizes.mlp_units}
    fingerprint = Fingerprint.of(config, stage).settings()
    facts = expand.describe(plan, fingerprint, stage.name, stage.model, stage.source, shown)
    logger.info("%s: %s -> '%s' by method '%s'", stage.name, plan.source, stage.model, stage.method.name)
    expand.into_stage(plan, folder, facts)


def _plan_expansion(config: Config, stage: ExpandStage, nodes: Nodes) -> "ExpansionPlan":
    from pipeline import models
    from pipeline.data import open_prepared
    from pipeline.expansion import expand
    from pipeline.runs import preflight
    from pipeline.training.start import origin

    reader = next(iter(config.continued_by(stage.name)), None)
    return expand.plan_expansion(
        origin(config, stage.source),
        models.trained(config.models[stage.model], open_prepared(config.path / "data").facts),
        preflight.options(stage, config.seed),
        _layout_for(reader, nodes.count * launcher.processes(config.processes)),
        grow_optimizer_state=stage.optimizer_state == "grow",
        continued_by=reader.optimizer if reader else None,
    )


def _layout_for(reader: TrainStage | None, ranks: int) -> "CheckpointLayout":
    """The layout that the training stage behind an expansion reads: native shards of its ZeRO stage and ranks."""
    from pipeline.checkpoints.layouts import HUGGING_FACE, CheckpointLayout

    if reader is None or reader.zero_stage == 0:
        return CheckpointLayout(HUGGING_FACE.name)
    return CheckpointLayout.of(reader, ranks)


def report(runs: list[Path], out: Path | None = None, target: float | None = None) -> None:
    """Write report.html and report.json into `out`, by default the first run's folder. Raises UserError."""
    from pipeline import report as reporting

    content = reporting.build(runs, target=target)
    page = reporting.write(content, out or runs[0])
    broken = any(run.warnings for run in content.runs)
    logger.log(logging.WARNING if broken else logging.INFO, "%s", reporting.summary(content, page))
