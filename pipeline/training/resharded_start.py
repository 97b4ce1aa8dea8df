"""A stage that goes on with other ranks, another ZeRO stage or precision than its checkpoint was written for: the
checkpoint is written anew in the layout that this start's engine loads, moments and steps included.

One process does it before the workers meet. The copy lies in the stage's `resharded/`, where nobody takes it for a
checkpoint of the stage; it is removed when a newer checkpoint has been saved, and made again whenever it is not whole.
"""

import logging
import shutil
from functools import partial
from pathlib import Path

from pipeline.checkpoints import CheckpointLayout, manifest, publish
from pipeline.checkpoints.reshard import plan_reshard, write_reshard
from pipeline.config.schema import Config, TrainStage
from pipeline.errors import UserError
from pipeline.records.file_hashes import sha256
from pipeline.records.processes import WORKERS
from pipeline.records.run_folder import StageFolder
from pipeline.training import micro_batches
from pipeline.training.start import continues_optimizer, is_loadable, origin, stored_layout

logger = logging.getLogger(__name__)

FOLDER = "resharded"


def prepare(config: Config, stage: TrainStage, ranks: int) -> None:
    """Reshard what the engine of `stage` on `ranks` ranks is to load, where it is in another layout, and tell it.
    Damaged checkpoints are set aside first. Raises UserError."""
    folder = StageFolder(config.path / stage.name)
    micro_batches.size_of(micro_batches.as_begun(stage, folder), ranks)  # may be refused, before anything is written
    if changed := micro_batches.change(stage, folder):
        logger.warning(f"{stage.name}: {changed}")
    if not all(_fits(checkpoint, stage, ranks) for checkpoint in publish.complete(folder.checkpoints)):
        publish.newest_complete(folder.checkpoints, partial(manifest.verify, workers=WORKERS))
    source = _source(config, stage, ranks)
    if source is None or is_loadable(source, stage, ranks):
        remove(folder)
        return
    copy = _copy(source, stage, ranks, folder)
    if not _is_whole(copy, source):
        remove(folder)
        write_reshard(plan_reshard(source, CheckpointLayout.of(stage, ranks)), copy, WORKERS, config.hash)
    logger.info(f"{stage.name}: {_told(source, copy, stage, ranks, folder)}")


def is_prepared(config: Config, stage: TrainStage, ranks: int) -> bool:
    """Whether what the engine is to load is there, for processes that wait for it; what is wrong is told by the one
    that prepares it."""
    try:
        source = _source(config, stage, ranks)
        if source is None or is_loadable(source, stage, ranks):
            return True
        return _is_of(_copy(source, stage, ranks, StageFolder(config.path / stage.name)), source)
    except (UserError, OSError):  # damaged, or set aside at this moment
        return False


def place(checkpoint: Path, stage: TrainStage, ranks: int, folder: StageFolder) -> Path:
    """The checkpoint itself, or the copy of it that the engine of `stage` on `ranks` ranks loads. Raises UserError
    where there is none."""
    if is_loadable(checkpoint, stage, ranks):
        return checkpoint
    copy = _copy(checkpoint, stage, ranks, folder)
    if not _is_of(copy, checkpoint):
        raise UserError(
            f"{checkpoint}: written as {stored_layout(checkpoint).words}, this stage runs as "
            f"{CheckpointLayout.of(stage, ranks).words}, and {copy} is missing; run the command again"
        )
    return copy


def remove(folder: StageFolder) -> None:
    """To be called when the stage has saved a checkpoint of its own."""
    shutil.rmtree(folder.path / FOLDER, ignore_errors=True)


def _source(config: Config, stage: TrainStage, ranks: int) -> Path | None:
    """The checkpoint of which the engine loads the optimizer too: the stage's newest, or what it starts from."""
    if newest := publish.newest(config.path / stage.name / "checkpoints"):
        return newest
    start = origin(config, stage.start) if stage.start else None
    return start if start and continues_optimizer(start, stage, ranks) else None


def _fits(checkpoint: Path, stage: TrainStage, ranks: int) -> bool:
    """A damaged one does not."""
    try:
        manifest.read(checkpoint)
        return is_loadable(checkpoint, stage, ranks)
    except UserError:
        return False


def _copy(source: Path, stage: TrainStage, ranks: int, folder: StageFolder) -> Path:
    sums = CheckpointLayout.of(stage, ranks).fp32_sums
    formats = [f"-{stage.precision}"] * (stage.precision != "fp32") + ["-fp32-sums"] * sums
    return folder.path / FOLDER / "".join([f"{source.name}-zero{stage.zero_stage}x{ranks}", *formats])


def _is_of(copy: Path, source: Path) -> bool:
    """Whether it was made from `source` as that is now."""
    if not (copy / manifest.NAME).exists():
        return False
    origin = manifest.parse(copy / manifest.NAME).source or {}
    return origin.get("manifest_sha256") == sha256(source / manifest.NAME)


def _is_whole(copy: Path, source: Path) -> bool:
    """The same, and every byte is what was written."""
    try:
        return _is_of(copy, source) and bool(manifest.verify(copy, WORKERS))
    except UserError:
        return False


def _told(source: Path, copy: Path, stage: TrainStage, ranks: int, folder: StageFolder) -> str:
    written, own = stored_layout(source), CheckpointLayout.of(stage, ranks)
    line = f"goes on as {own.words}; {source}, written as {written.words}, was resharded to {copy}"
    if source.parent != folder.checkpoints:
        return f"{line} with its optimizer state"
    begun = micro_batches.as_begun(stage, folder)
    size = micro_batches.size_of(begun, ranks)
    dropout = "" if micro_batches.change(stage, folder) else " dropout,"
    return (
        f"{line}; kept are sample order,{dropout} schedule, and {stage.batch // size} micro-batches of {size} samples "
        "a step"
    )
