"""The micro-batches of a stage's steps, in the order that its rewinds leave."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from pipeline.data import Batch, train_batches
from pipeline.training.stage import TrainingPlan


class StepSamples:
    """This rank's micro-batches, `parts` a step. ranks: micro_batch, rank, world and device, as `train_batches`
    takes them."""

    def __init__(self, plan: TrainingPlan, ranks: dict[str, Any], parts: int):
        self._plan, self._ranks, self._parts = plan, ranks, parts
        self._batches: Iterator[Batch] = iter(())
        self._next: int | None = None

    def of(self, data_step: int) -> Iterator[Batch]:
        """Those of a step, each on the device until the next one is asked for; a loader runs on from step to step, and
        begins anew where the order leaps. Raises UserError as `train_batches` does."""
        if data_step != self._next:
            config = self._plan.config
            self._batches = train_batches(
                self._plan.data,
                config.data,
                config.seed,
                batch=self._plan.stage.batch,
                first_step=data_step,
                first_sample=self._plan.first_sample,
                **self._ranks,
            )
        self._next = data_step + 1
        return islice(self._batches, self._parts)
