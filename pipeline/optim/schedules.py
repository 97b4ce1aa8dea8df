"""Learning-rate schedules: their keys in a config, and the rates that follow, pure functions of the step, so that
resuming needs no scheduler state.

All of them warm up linearly from `initial` to `peak`. A new kind is two classes, its keys and its rates, and its name
in `Schedule`, the one list of kinds.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.durations import Duration, Pace, PositiveDuration
from pipeline.errors import UserError
from pipeline.records.strict import Strict


@dataclass(frozen=True)
class Rates(ABC):
    """A schedule with its durations resolved to steps. The decay ends at `horizon`; training stops after `steps`
    updates, before that or behind it."""

    kind: str
    peak: float
    minimum: float
    initial: float
    warmup: int
    horizon: int
    steps: int

    def at(self, step: int) -> float:
        """The rate of update number `step`; the first is 0."""
        if step < self.warmup:
            return self.initial + (self.peak - self.initial) * step / self.warmup
        return self.after_warmup(step)

    @abstractmethod
    def after_warmup(self, step: int) -> float:
        """The rate of an update after the warm-up; from `horizon` on it stays what it is there."""

    def _decayed(self, share: float) -> float:
        """`share` of the way from the minimum (0) to the peak (1)."""
        return self.minimum + (self.peak - self.minimum) * share


@dataclass(frozen=True)
class CosineRates(Rates):
    """Half a cosine from the end of the warm-up to the horizon."""

    def after_warmup(self, step: int) -> float:
        return self._decayed(0.5 * (1.0 + math.cos(math.pi * _progress(step, self.warmup, self.horizon))))


@dataclass(frozen=True)
class LinearRates(Rates):
    """A straight line from the end of the warm-up to the horizon."""

    def after_warmup(self, step: int) -> float:
        return self._decayed(1.0 - _progress(step, self.warmup, self.horizon))


@dataclass(frozen=True)
class ConstantRates(Rates):
    """The peak, to the end."""

    def after_warmup(self, step: int) -> float:
        return self.peak


@dataclass(frozen=True)
class WarmupStableDecayRates(Rates):
    """The peak, then a straight line over the last `decay` steps before the horizon."""

    decay: int

    def after_warmup(self, step: int) -> float:
        return self._decayed(1.0 - _progress(step, self.horizon - self.decay, self.horizon))


def _progress(step: int, begin: int, end: int) -> float:
    """How far `step` is on the way from `begin` to `end`, clipped to 0 … 1."""
    return min(1.0, max(0, step - begin) / max(1, end - begin))


class _Schedule(Strict, ABC):
    """What all kinds share. `minimum` is the rate at the end of the decay, and behind it. `steps` may become another
    duration when a stage goes on, one that has ended too: it decides none of the rates."""

    peak: float = Field(gt=0)
    minimum: float = Field(0.0, ge=0)
    initial: float = Field(0.0, ge=0, description="rate at step 0 of the warm-up")
    warmup: Duration = Duration.parse("0 steps")
    horizon: PositiveDuration
    steps: PositiveDuration | None = Field(None, description="length of the stage; default: to the end of the decay")
    kind: str

    @model_validator(mode="after")
    def _peak_is_highest(self) -> Self:
        if max(self.minimum, self.initial) > self.peak:
            raise ValueError(f"minimum {self.minimum} and initial {self.initial} may not be above peak {self.peak}")
        return self

    @abstractmethod
    def resolve(self, pace: Pace) -> Rates:
        """Turn the durations into steps at this `pace`. Raises UserError when they do not fit into the horizon."""

    def _shared(self, pace: Pace, horizon: int) -> dict[str, Any]:
        """The fields that all `Rates` have. Raises UserError when the warm-up would not end before the horizon."""
        warmup = self.warmup.steps(pace)
        if warmup >= horizon:
            raise UserError(
                f"the warm-up of {warmup} steps does not end before the horizon of {horizon} steps; shorten warmup"
            )
        return {
            "kind": self.kind,
            "peak": self.peak,
            "minimum": self.minimum,
            "initial": self.initial,
            "warmup": warmup,
            "horizon": horizon,
            "steps": self.steps.steps(pace) if self.steps else horizon,
        }


class CosineSchedule(_Schedule):
    """Warm-up, then half a cosine to `minimum` at the horizon."""

    kind: Literal["cosine"] = "cosine"

    def resolve(self, pace: Pace) -> Rates:
        return CosineRates(**self._shared(pace, self.horizon.steps(pace)))


class LinearSchedule(_Schedule):
    """Warm-up, then a straight line to `minimum` at the horizon."""

    kind: Literal["linear"]

    def resolve(self, pace: Pace) -> Rates:
        return LinearRates(**self._shared(pace, self.horizon.steps(pace)))


class ConstantSchedule(_Schedule):
    """Warm-up, then `peak` to the horizon."""

    kind: Literal["constant"]

    def resolve(self, pace: Pace) -> Rates:
        return ConstantRates(**self._shared(pace, self.horizon.steps(pace)))


class LemonSchedule(_Schedule):
    """LEMON's (arXiv:2310.07999): the from-scratch cosine with the same peak, and its horizon shortened to
    `fraction * horizon`."""

    kind: Literal["lemon"]
    fraction: float = Field(gt=0, le=1)

    def resolve(self, pace: Pace) -> Rates:
        # 0.55 * 100 is 55.00000000000001 in binary floats, and must not become 56 steps
        horizon = math.ceil(round(self.fraction * self.horizon.steps(pace), 6))
        return CosineRates(**self._shared(pace, horizon))


class WarmupStableDecaySchedule(_Schedule):
    """Warm-up, `peak` for most of the horizon, then a straight line to `minimum` over its last `decay`
    (MiniCPM, arXiv:2404.06395)."""

    kind: Literal["wsd"]
    decay: PositiveDuration

    def resolve(self, pace: Pace) -> Rates:
        shared, decay = self._shared(pace, self.horizon.steps(pace)), self.decay.steps(pace)
        if shared["warmup"] + decay > shared["horizon"]:
            raise UserError(
                f"a warm-up of {shared['warmup']} steps and a decay of {decay} steps do not fit into the "
                f"horizon of {shared['horizon']} steps; shorten warmup or decay"
            )
        return WarmupStableDecayRates(**shared, decay=decay)


def _defaults(keys: Any) -> Any:
    """The default kind is cosine. Older versions wrote `fraction: null` for every kind: it is dropped."""
    if not isinstance(keys, dict):
        return keys
    return {"kind": "cosine"} | {key: value for key, value in keys.items() if (key, value) != ("fraction", None)}


Schedule = Annotated[
    Annotated[
        CosineSchedule | LinearSchedule | ConstantSchedule | LemonSchedule | WarmupStableDecaySchedule,
        Field(discriminator="kind"),
    ],
    BeforeValidator(_defaults),
]
"""Any schedule; its `kind` says which."""
