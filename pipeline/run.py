"""A whole run: prepare, every stage in turn, report. Finished stages are skipped, an interrupted one resumes."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from pipeline import folders, launcher
from pipeline.config import Config, ExpandStage, TrainStage, dump
from pipeline.errors import UserError
from pipeline.folders import StageFolder
from pipeline.launcher import Nodes

console = Console(highlight=False, soft_wrap=True)


def run(config: Config, nodes: Nodes = Nodes()) -> None:
    """Everything the config asks for, in order. Raises UserError."""
    with folders.exclusive(config.path, nodes.rank):
        _begin(config, nodes)
        prepare(config, nodes)
        for stage in config.stages:
            one_stage(config, stage, nodes)
        if nodes.rank == 0:
            report([config.path])


def stage_alone(config: Config, name: str, nodes: Nodes = Nodes()) -> None:
    """One stage of a run, preparing the data first where that has not been done."""
    stage = config.stage(name)
    with folders.exclusive(config.path, nodes.rank):
        _begin(config, nodes)
        prepare(config, nodes)
        one_stage(config, stage, nodes)


def prepare_alone(config: Config) -> None:
    with folders.exclusive(config.path):
        _begin(config, Nodes())
        prepare(config, Nodes())


def _begin(config: Config, nodes: Nodes) -> None:
    """Refuse a config that contradicts what the folder already holds; else write it there."""
    for stage in config.stages:
        _require_same(config, stage)
    if nodes.rank == 0:
        (config.path / "config.yaml").write_text(dump(config), encoding="utf-8")


def prepare(config: Config, nodes: Nodes) -> None:
    from pipeline import data

    place = config.path / "data"
    _on_first_node(nodes, lambda: (place / "data.json").exists(), lambda: data.prepare(config.data, config.seed, place, console.print))


def one_stage(config: Config, stage: TrainStage | ExpandStage, nodes: Nodes) -> None:
    """Run a stage unless it is finished."""
    folder = StageFolder(config.path / stage.name)
    if folder.finished:
        console.print(f"{stage.name}: finished already, skipped")
    elif isinstance(stage, ExpandStage):
        _on_first_node(nodes, lambda: folder.finished, lambda: _expand(config, stage, folder, nodes))
    else:
        _train(config, stage, nodes)


def _train(config: Config, stage: TrainStage, nodes: Nodes) -> None:
    from pipeline import engine, train

    workers = launcher.processes(config.processes)
    engine.settings(stage, workers * nodes.count)  # batch and ranks are checked here, before anything starts
    job = train.plan(config, stage)
    table = f"{train.facts_line(job)}, {workers * nodes.count} ranks, ZeRO-{stage.zero_stage}, {stage.precision}"
    console.print(f"[bold]{stage.name}[/bold]: {table}")
    launcher.launch(["train", str(config.path / "config.yaml"), "--stage", stage.name], workers, nodes, config.path)


def _expand(config: Config, stage: ExpandStage, folder: StageFolder, nodes: Nodes) -> None:
    from pipeline import expand, models, train
    from pipeline.data import open_prepared
    from pipeline.growth.plan import Options

    sizes = config.models[stage.model]
    target = models.family(sizes.family).configure(sizes, open_prepared(config.path / "data").facts)
    options = Options(stage.method, stage.depth, stage.placement, stage.noise, config.seed)
    job = expand.plan(train.origin(config, stage.source), target, options, form_for(config, stage, nodes))
    shown = {"layers": sizes.layers, "hidden": sizes.hidden, "heads": sizes.heads, "mlp": sizes.mlp_units}
    facts = expand.describe(job, config.fingerprint(stage), stage.name, stage.model, stage.source, shown)
    console.print(f"[bold]{stage.name}[/bold]: {job.source} -> '{stage.model}' by method '{stage.method}'")
    expand.into_stage(job, folder, facts, console.print)


def form_for(config: Config, stage: ExpandStage, nodes: Nodes):
    """The layout that the training stage behind this expansion reads: native shards of its ZeRO stage and ranks."""
    from pipeline.checkpoints import Format

    reader = next((s for s in config.stages if isinstance(s, TrainStage) and s.start == stage.name), None)
    if reader is None or reader.zero_stage == 0:
        return Format("huggingface")
    return Format("zero", reader.zero_stage, nodes.count * launcher.processes(config.processes), reader.precision == "bf16")


def _require_same(config: Config, stage: TrainStage | ExpandStage) -> None:
    folder = StageFolder(config.path / stage.name)
    held, wanted = folder.facts.get("fingerprint"), config.fingerprint(stage)
    if held is None or held == wanted:
        return
    part, key = next((p, k) for p in wanted for k in _keys(held[p], wanted[p]))
    old, new = (side[part] if key is None else side[part].get(key) for side in (held, wanted))
    raise UserError(
        f"{folder.path}: begun with {part}{'.' + key if key else ''} = {old}, the config now says {new}; "
        f"take another folder (folder=…) or remove {folder.path}"
    )


def _keys(held: object, wanted: object) -> list[str | None]:
    if not isinstance(held, dict) or not isinstance(wanted, dict):
        return [None] if held != wanted else []
    return [key for key in {**held, **wanted} if held.get(key) != wanted.get(key)]


def _on_first_node(nodes: Nodes, done: Callable[[], bool], action: Callable[[], object]) -> None:
    """Offline work happens on node 0; the others wait for its result on the shared file system."""
    if nodes.rank == 0:
        action()
        return
    with console.status("waiting for node 0"):
        while not done():
            time.sleep(1)


def report(runs: list[Path], out: Path | None = None, target: float | None = None) -> None:
    from pipeline import report as reporting

    content = reporting.build(runs, target=target)
    page = reporting.write(content, out or runs[0])
    console.print(reporting.summary(content, page), markup=False, soft_wrap=True)
