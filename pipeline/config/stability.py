"""The section `stability` of a training stage: what to do where its loss or gradient norm is no number, or spikes."""

from typing import Literal

from pydantic import Field

from pipeline.records.event_records import Action
from pipeline.records.strict import Strict


class Stability(Strict):
    """`warn` goes on, `skip` leaves the update out, `rewind` goes back to the newest checkpoint and on without the
    samples since then, `abort` ends the run. Not part of a stage's fingerprint: it may change when a stage goes on."""

    not_finite: Action = Field("abort", description="where the loss or the gradient norm is not a number or infinite")
    spike: Literal["ignore", "warn", "skip", "rewind", "abort"] = Field(
        "warn", description="where it lies far above its running median"
    )
    sigmas: float = Field(
        10.0, gt=0, description="how far: standard deviations, estimated from the median absolute deviation"
    )
    window: int = Field(100, ge=8, le=1000, description="steps of the running median; until then nothing is a spike")
    skips: int = Field(10, ge=1, description="updates in a row that may be skipped; the next ends the run")
    rewinds: int = Field(3, ge=1, description="rewinds to one checkpoint; the next ends the run")

    @property
    def may_skip(self) -> bool:
        """Whether the loss of all ranks must be known before the update. `warn` goes on without an update that is not
        finite: behind it there would be no weights that are numbers."""
        return "skip" in (self.not_finite, self.spike) or self.not_finite == "warn"
