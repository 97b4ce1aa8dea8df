"""The checkpoint that a training stage begins from or goes on from, and whether the engine loads its optimizer too.

An expansion is written as the shards of the stage behind it, and goes through the engine. Of any other start the
weights are taken, and the optimizer is fresh; but optimizer state that was grown never gets lost that way: in another
layout it is resharded (resharded_start.py).
"""

from pathlib import Path

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout, manifest, publish
from pipeline.config.schema import Config, TrainStage
from pipeline.errors import UserError
from pipeline.growth import optimizer_state
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import ExpandFacts
from pipeline.training.length import has_ended


def origin(config: Config, name: str) -> Path:
    """The checkpoint to start from: an earlier stage's last, or a folder's newest. Raises UserError, also for a stage
    that is not finished."""
    if name not in {stage.name for stage in config.stages}:
        return checkpoints.locate(Path(name))
    folder = StageFolder(config.path / name)
    if not has_ended(config, config.stage(name)):
        raise UserError(
            f"{folder.path}: the stage {_progress(folder)}, and what starts from it needs its end; finish it first: "
            f"lemon train {config.path / 'config.yaml'} --stage {name}"
        )
    return checkpoints.locate(folder.path)


def _progress(folder: StageFolder) -> str:
    facts, newest = folder.facts, publish.newest(folder.checkpoints)
    if facts is None:
        return "has not begun"
    if isinstance(facts, ExpandFacts):
        return "was interrupted"
    if facts.status == "finished":
        return f"ended at step {facts.end}, and is to go on"
    return f"is at step {manifest.read(newest).step if newest else 0} of {facts.steps}"


def require_start(config: Config, stage: TrainStage, world: int) -> None:
    """Raises UserError where all checkpoints of a stage are damaged, or where the engine of `stage` on `world` ranks
    would lose what its start holds, as far as there is one by now."""
    folder = StageFolder(config.path / stage.name)
    if folder.finished or publish.newest_complete(folder.checkpoints, require_whole_facts):
        return
    if stage.start and _is_there(config, stage.start):
        continues_optimizer(origin(config, stage.start), stage, world)


def require_whole_facts(checkpoint: Path) -> None:
    """Raises UserError where what is read of a checkpoint before its tensors is damaged: the manifest, which has the
    size of every file, and the model's config. The workers look at every byte."""
    manifest.verify_files(checkpoint, [checkpoints.CONFIG])


def _is_there(config: Config, name: str) -> bool:
    """Whether a start has been made: a finished stage, or a folder."""
    return name not in {stage.name for stage in config.stages} or StageFolder(config.path / name).finished


def continues_optimizer(start: Path, stage: TrainStage, world: int) -> bool:
    """Whether `start` is an expansion whose optimizer the engine of `stage` on `world` ranks goes on with: one that was
    grown in any layout, a fresh one in the engine's own. Raises UserError where the grown one is of another kind."""
    content = manifest.read_if_any(start)
    grown = content is not None and content.optimizer_state in ("grow", "asymmetric")
    if content is None or not (grown or content.kind == "expand"):
        return False
    left = checkpoints.raw(start).optimizer()
    if grown:
        optimizer_state.require_continued(f"{start}: a grown optimizer state", left, stage.optimizer)
        _require_groups(start, stage)
        return True
    return is_loadable(start, stage, world) and stage.optimizer.continues(left) and _in_its_groups(start, stage)


def require_new_entries(start: Path | None, stage: TrainStage) -> None:
    """Raises UserError where a stage is to warm new entries up, and what it begins from says of none."""
    content = manifest.read_if_any(start) if start else None
    if content is None or content.optimizer_state != "asymmetric":
        raise UserError(
            f"stages.{stage.name}.rewarm: {start or 'fresh weights'} has no optimizer state that was kept on the "
            "source's entries, so that no entry is new; leave it out, or expand with optimizer_state asymmetric"
        )


def _require_groups(start: Path, stage: TrainStage) -> None:
    """Raises UserError where a grown optimizer state is not in the groups of `stage`: flat files name nothing."""
    if not _in_its_groups(start, stage):
        raise UserError(
            f"{start}: its grown optimizer state is in other groups than stages.{stage.name}.optimizer makes; give the "
            "stage the rates for which it was grown or an expansion of its own, or use --optimizer-state reset"
        )


def _in_its_groups(start: Path, stage: TrainStage) -> bool:
    """Whether a checkpoint has the groups that the stage's optimizer makes."""
    state, model = checkpoints.read(start)
    mine = checkpoints.fresh_groups(model, stage.optimizer)
    return [group.names for group in state.groups] == [group.names for group in mine]


def is_loadable(folder: Path, stage: TrainStage, world: int) -> bool:
    """Whether the engine of `stage` on `world` ranks loads a checkpoint and its optimizer as they are: native shards
    are those of one ZeRO stage and number of ranks. Raises UserError for a damaged one."""
    stored = stored_layout(folder)
    return stored.kind.engine_loads(stored, CheckpointLayout.of(stage, world), stage.optimizer)


def stored_layout(folder: Path) -> CheckpointLayout:
    """The layout that the manifest of a checkpoint names. Raises UserError."""
    return CheckpointLayout.from_facts(manifest.parse(folder / manifest.NAME).facts())


def require_loadable(folder: Path, stage: TrainStage, world: int) -> None:
    """Raises UserError where the engine cannot load it."""
    if not is_loadable(folder, stage, world):
        raise UserError(
            f"{folder}: written as {stored_layout(folder).words}, this stage runs as "
            f"{CheckpointLayout.of(stage, world).words}; write it as that with lemon reshard"
        )
