"""A whole run: prepare, every stage in turn, report. Finished stages are skipped, an interrupted one resumes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pipeline.config import dump
from pipeline.config.fingerprint import Fingerprint
from pipeline.config.schema import Config, ExpandStage, TrainStage
from pipeline.errors import UserError
from pipeline.records import run_folder
from pipeline.records.run_folder import StageFolder
from pipeline.training import launcher
from pipeline.training.launcher import Nodes

BEGUN = time.time()
"""When this process began: a failure that node 0 noted before then is an earlier run's."""

console = Console(highlight=False, soft_wrap=True)


def run(config: Config, nodes: Nodes = Nodes()) -> None:
    """Everything the config asks for, in order. Raises UserError."""
    with _held(config, nodes):
        for stage in config.stages:
            one_stage(config, stage, nodes)
        if nodes.rank == 0:
            report([config.path])


def stage_alone(config: Config, name: str, nodes: Nodes = Nodes()) -> None:
    """One stage of a run, preparing the data first where that has not been done."""
    stage = config.stage(name)
    with _held(config, nodes):
        one_stage(config, stage, nodes)


def prepare_alone(config: Config) -> None:
    with _held(config, Nodes()):
        pass


@contextmanager
def _held(config: Config, nodes: Nodes) -> Iterator[None]:
    """The run folder, locked, its data prepared, the whole config checked against it: mistakes in the last stage are
    found before the first one trains. Node 0 leaves its failure where the waiting nodes look."""
    stopped = config.path / ".stopped"
    with run_folder.exclusive(config.path, nodes.rank):
        if nodes.rank == 0:
            stopped.unlink(missing_ok=True)
        try:
            from pipeline.runs import preflight

            preflight.before_data(config, nodes.count * launcher.processes(config.processes))
            prepare(config, nodes)
            preflight.after_data(config)
            if nodes.rank == 0:
                run_folder.write_text(config.path / "config.yaml", dump(config))
            yield
        except UserError as error:
            if nodes.rank == 0 and nodes.count > 1:
                run_folder.write_text(stopped, str(error))
            raise


def prepare(config: Config, nodes: Nodes) -> None:
    from pipeline import data

    place = config.path / "data"
    _on_first_node(
        config,
        nodes,
        lambda: (place / "data.json").exists(),
        lambda: data.prepare(config.data, config.seed, place, console.print),
    )


def one_stage(config: Config, stage: TrainStage | ExpandStage, nodes: Nodes) -> None:
    """Run a stage unless it is finished."""
    folder = StageFolder(config.path / stage.name)
    if folder.finished:
        console.print(f"{stage.name}: finished already, skipped")
    elif isinstance(stage, ExpandStage):
        _on_first_node(config, nodes, lambda: folder.finished, lambda: _expand(config, stage, folder, nodes))
    else:
        _train(config, stage, nodes)


def _train(config: Config, stage: TrainStage, nodes: Nodes) -> None:
    from pipeline.training.stage import facts_line, plan_training

    workers = launcher.processes(config.processes)
    job = plan_training(config, stage)
    architecture = f"{facts_line(job)}, {workers * nodes.count} ranks, ZeRO-{stage.zero_stage}, {stage.precision}"
    console.print(f"[bold]{stage.name}[/bold]: {architecture}")
    launcher.launch(["train", str(config.path / "config.yaml"), "--stage", stage.name], workers, nodes, config.path)


def _expand(config: Config, stage: ExpandStage, folder: StageFolder, nodes: Nodes) -> None:
    from pipeline import models
    from pipeline.data import open_prepared
    from pipeline.expansion import expand
    from pipeline.runs import preflight
    from pipeline.training.stage import origin

    sizes = config.models[stage.model]
    target = models.trained(sizes, open_prepared(config.path / "data").facts)
    source = origin(config, stage.source)
    job = expand.plan_expansion(
        source,
        target,
        preflight.options(stage, config.seed),
        form_for(config, stage, nodes),
        grow_optimizer_state=stage.optimizer_state == "grow",
    )
    shown = {"layers": sizes.layers, "hidden": sizes.hidden, "heads": sizes.heads, "mlp": sizes.mlp_units}
    facts = expand.describe(job, Fingerprint.of(config, stage).settings(), stage.name, stage.model, stage.source, shown)
    console.print(f"[bold]{stage.name}[/bold]: {job.source} -> '{stage.model}' by method '{stage.method.name}'")
    expand.into_stage(job, folder, facts, console.print)


def form_for(config: Config, stage: ExpandStage, nodes: Nodes):
    """The layout that the training stage behind this expansion reads: native shards of its ZeRO stage and ranks."""
    from pipeline.checkpoints.layouts import HUGGING_FACE, CheckpointLayout

    reader = next((s for s in config.stages if isinstance(s, TrainStage) and s.start == stage.name), None)
    if reader is None or reader.zero_stage == 0:
        return CheckpointLayout(HUGGING_FACE.name)
    return CheckpointLayout.of(reader, nodes.count * launcher.processes(config.processes))


def _on_first_node(config: Config, nodes: Nodes, done: Callable[[], bool], action: Callable[[], object]) -> None:
    """Offline work happens on node 0; the others wait for its result on the shared file system, or for its failure."""
    if nodes.rank == 0:
        action()
        return
    stopped = config.path / ".stopped"
    with console.status("waiting for node 0"):
        while not done():
            if stopped.exists() and stopped.stat().st_mtime > BEGUN:
                raise UserError(f"node 0 stopped: {stopped.read_text(encoding='utf-8')}")
            time.sleep(1)


def report(runs: list[Path], out: Path | None = None, target: float | None = None) -> None:
    from pipeline import report as reporting

    content = reporting.build(runs, target=target)
    page = reporting.write(content, out or runs[0])
    console.print(reporting.summary(content, page), markup=False, soft_wrap=True)
