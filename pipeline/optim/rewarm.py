"""A second warm-up, of the entries alone that a growth has added (SPARKLING, arXiv:2602.02472)."""

from dataclasses import dataclass

from pydantic import Field, field_validator

from pipeline.durations import Duration, Pace, PositiveDuration
from pipeline.records.strict import Strict


@dataclass(frozen=True)
class Ramp:
    """The factor on the common rate of new entries: from 1 up to `to` within `steps` steps, and `to` behind them."""

    steps: int
    to: float

    def at(self, step: int) -> float:
        """The factor of the update number `step` behind the growth; the first is 1."""
        return 1.0 + (self.to - 1.0) * min(1.0, step / self.steps)


LEVEL = Ramp(1, 1.0)
"""The common rate."""


class Rewarm(Strict):
    """New entries have the rate of all others at first, and `to` times it behind `steps`, to the end of the stage: they
    decay as the others do, at their own level."""

    steps: PositiveDuration = Field(Duration.parse("250 steps"), description="how long the factor rises")
    to: float = Field(1.3, gt=0, allow_inf_nan=False, description="the factor that it reaches, on the common rate")

    @field_validator("steps")
    @classmethod
    def _in_the_stages_own_steps(cls, steps: Duration) -> Duration:
        """FLOPs of a step are others where a later start computes layers again, and the ramp would be another."""
        if steps.unit == "flops":
            raise ValueError(f"'{steps}': say it in steps, samples, tokens or epochs")
        return steps

    def resolve(self, pace: Pace) -> Ramp:
        """The ramp in steps of a stage."""
        return Ramp(self.steps.steps(pace), self.to)
