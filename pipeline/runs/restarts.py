"""Starting a training again after a fault, by the same command."""

import logging
from collections.abc import Callable

from pipeline.checkpoints import publish
from pipeline.errors import FaultError
from pipeline.records.run_folder import StageFolder, step_of
from pipeline.training import preemption

logger = logging.getLogger(__name__)


def until_done(attempt: Callable[[], None], folder: StageFolder, limit: int, *, decides: bool) -> None:
    """Attempt to train the stage of `folder`, again after each fault: `limit` times in a row without a newer checkpoint
    between. decides: whether this node counts; the others of a run with restarts follow it. Raises the last FaultError,
    and what else `attempt` raises."""
    left, furthest = limit, _newest(folder)
    while True:
        try:
            attempt()
            return
        except FaultError as fault:
            newest = _newest(folder)
            left = (limit if newest > furthest else left) - 1
            furthest = max(furthest, newest)
            if preemption.FORWARDING.asked is not None:
                logger.warning(f"{folder.path.name}: {fault.what}")
            preemption.FORWARDING.stop_if_asked()
            if limit == 0 or (left < 0 and decides):
                raise
            more = f" (restarts left: {left})" if decides else ""
            logger.warning(f"{folder.path.name}: {fault.what}; starting again from step {newest}{more}")


def _newest(folder: StageFolder) -> int:
    """The step of its newest checkpoint, 0 without one."""
    newest = publish.newest(folder.checkpoints)
    return (step_of(newest) or 0) if newest else 0
