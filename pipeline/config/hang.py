"""How long training may stand still before that counts as a hang (training/hangs)."""

from typing import Self

from pydantic import Field, model_validator

from pipeline.durations import Time, seconds
from pipeline.records.strict import Strict


class HangChoice(Strict):
    """A phase is the start, a step, an evaluation, a save, or the end; in each all ranks wait for each other."""

    watch: bool = Field(True, description="false: nobody looks, and a hang ends with the collective's time-out")
    step: Time = Field("10 seconds", description="a step stands still so long, or `factor` median steps: a hang")
    pause: Time = Field("2 minutes", description="the same of an evaluation or a save, or `factor` times the last one")
    first: Time = Field("10 minutes", description="the same of the start, the end, and the first phase of each kind")
    factor: float = Field(5.0, gt=1, le=1000)
    collective: Time = Field("30 minutes", description="time-out of every collective of every process group")

    @model_validator(mode="after")
    def _collectives_wait_longest(self) -> Self:
        longest = max(("step", "pause", "first"), key=lambda name: seconds(getattr(self, name)))
        if seconds(getattr(self, longest)) > seconds(self.collective):
            raise ValueError(
                f"hang.{longest}: '{getattr(self, longest)}' is longer than hang.collective, '{self.collective}', "
                "after which collectives give up; raise hang.collective"
            )
        return self
