"""Starting a training again after a fault, by the same command."""

import logging
from collections.abc import Callable

from pipeline.checkpoints import publish
from pipeline.errors import FaultError
from pipeline.records.run_folder import StageFolder, step_of

logger = logging.getLogger(__name__)


def until_done(attempt: Callable[[], None], folder: StageFolder, limit: int, *, decides: bool) -> None:
    """Attempt to train the stage of `folder`, again after each fault: `limit` times in a row without a newer checkpoint
    between. decides: whether this node counts; the others of a run with restarts follow it. Raises the last FaultError,
    and what else `attempt` raises."""
    left, newest = limit, publish.newest(folder.checkpoints)
    while True:
        try:
            attempt()
            return
        except FaultError as fault:
            before, newest = newest, publish.newest(folder.checkpoints)
            left = (left if newest == before else limit) - 1
            if limit == 0 or (left < 0 and decides):
                raise
            step, more = (step_of(newest) if newest else 0), f" (restarts left: {left})" if decides else ""
            logger.warning(f"{folder.path.name}: {fault.what}; starting again from step {step}{more}")
