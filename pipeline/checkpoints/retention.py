"""Which checkpoints of a stage stay when a newer one is published."""

import errno
import logging
import math
import shutil
from pathlib import Path

from pipeline.checkpoints import manifest
from pipeline.checkpoints.publish import STAGING, complete
from pipeline.config.schema import Retention
from pipeline.errors import UserError
from pipeline.records.run_folder import step_of

logger = logging.getLogger(__name__)

EVALUATION = "eval_loss"
"""The key of the manifest that says how good a checkpoint is; missing where its step was not evaluated."""


def kept(checkpoints: list[Path], keep: Retention) -> set[Path]:
    """Of a stage's checkpoints, the oldest first: the last ones, those of every n-th step, and the best."""
    staying = set(checkpoints[-keep.last :])
    if keep.every is not None:
        staying |= {checkpoint for checkpoint in checkpoints if (step_of(checkpoint) or 0) % keep.every == 0}
    if keep.best and (best := min(checkpoints, key=_loss, default=None)) and math.isfinite(_loss(best)):
        staying.add(best)
    return staying


def _loss(checkpoint: Path) -> float:
    """The evaluation loss that its manifest says; infinite where none is known."""
    try:
        loss = manifest.parse(checkpoint / manifest.NAME).facts().get(EVALUATION)
    except UserError:  # a damaged one is not the best
        return math.inf
    return loss if isinstance(loss, float) and math.isfinite(loss) else math.inf


def prune(folder: Path, keep: Retention) -> None:
    """Remove what need not stay, and whatever an interrupted writer left. To be called when the newest was read back. A
    copy that somebody has put aside under a name without a step stays."""
    checkpoints = [checkpoint for checkpoint in complete(folder) if step_of(checkpoint) is not None]
    staying = kept(checkpoints, keep)
    for old in (checkpoint for checkpoint in checkpoints if checkpoint not in staying):
        (old / manifest.NAME).unlink()  # from here on it is no checkpoint, whatever happens
        _remove(old)
    for left in [*folder.glob(STAGING + "*"), *(p for p in folder.glob("step-*") if not (p / manifest.NAME).exists())]:
        _remove(left)


def _remove(folder: Path) -> None:
    """What somebody reads at this moment over NFS cannot go; the next one to be removed takes it along."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        level = logging.DEBUG if error.errno in (errno.ENOTEMPTY, errno.EBUSY) else logging.WARNING
        logger.log(level, f"{folder}: cannot be removed ({error.strerror}); it is no checkpoint any more")
