"""The checkpoint that a training stage begins from or goes on from, and whether the engine loads its optimizer too.

An expansion is written as the shards of the stage behind it, and goes through the engine. Of any other start the
weights are taken, and the optimizer is fresh; but optimizer state that was grown never gets lost that way.
"""

from pathlib import Path

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout, manifest, publish
from pipeline.config.schema import Config, TrainStage
from pipeline.errors import UserError
from pipeline.growth import optimizer_state
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import ExpandFacts


def origin(config: Config, name: str) -> Path:
    """The checkpoint to start from: an earlier stage's last, or a folder's newest. Raises UserError, also for a stage
    that is not finished."""
    if name not in {stage.name for stage in config.stages}:
        return checkpoints.locate(Path(name))
    folder = StageFolder(config.path / name)
    if not folder.finished:
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
    return f"is at step {manifest.read(newest).step if newest else 0} of {facts.steps}"


def require_start(config: Config, stage: TrainStage, world: int) -> None:
    """Raises UserError where the engine of `stage` on `world` ranks cannot go on from the stage's newest checkpoint, or
    would lose what its start holds, as far as there is one by now."""
    folder = StageFolder(config.path / stage.name)
    if folder.finished:
        return
    if newest := publish.newest_complete(folder.checkpoints):
        require_loadable(newest, stage, world)
    elif stage.start and _is_there(config, stage.start):
        continues_optimizer(origin(config, stage.start), stage, world)


def _is_there(config: Config, name: str) -> bool:
    """Whether a start has been made: a finished stage, or a folder."""
    return name not in {stage.name for stage in config.stages} or StageFolder(config.path / name).finished


def continues_optimizer(start: Path, stage: TrainStage, world: int) -> bool:
    """Whether `start` is an expansion whose optimizer the engine of `stage` on `world` ranks loads. Raises UserError
    where it holds a grown state that the engine cannot load."""
    content = manifest.read_if_any(start)
    grown = content is not None and content.optimizer_state == "grow"
    if content is None or not (grown or content.kind == "expand"):
        return False
    left = checkpoints.raw(start).optimizer()
    if grown:
        optimizer_state.require_continued(f"{start}: a grown optimizer state", left, stage.optimizer)
        require_loadable(start, stage, world)
    stored, own = CheckpointLayout.from_facts(content.facts()), CheckpointLayout.of(stage, world)
    return stored.kind.engine_loads(stored, own, stage.optimizer) and stage.optimizer.continues(left)


def require_loadable(folder: Path, stage: TrainStage, world: int) -> None:
    """Raises UserError, with the way out, where the engine of `stage` on `world` ranks cannot load a checkpoint and its
    optimizer: native shards are those of one ZeRO stage and number of ranks."""
    stored = CheckpointLayout.from_facts(manifest.parse(folder / manifest.NAME).facts())
    own = CheckpointLayout.of(stage, world)
    if not stored.kind.engine_loads(stored, own, stage.optimizer):
        raise UserError(
            f"{folder}: written as {stored.words}, this stage runs as {own.words}; run it as before"
            + (f", or first write it as that: {_reshard_command(folder, stage, own)}" if own.zero_stage else "")
        )


def _reshard_command(folder: Path, stage: TrainStage, own: CheckpointLayout) -> str:
    """The command that writes a checkpoint beside it in the layout `own`, and how it is found: by its name (`step_of`)
    it is the newer one, unless the config names the older."""
    place = f"{folder}-zero{own.zero_stage}x{own.world_size}"
    flags = f"--zero-stage {own.zero_stage} --world-size {own.world_size}{' --bf16' if own.bf16 else ''}"
    named = stage.start is not None and Path(stage.start).resolve() == folder.resolve()
    found = f" (and start from it: stages.{stage.name}.start={place})" if named else ""
    return f"lemon reshard {folder} --out {place} {flags}{found}"
