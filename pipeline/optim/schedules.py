"""Learning-rate schedules: their keys in a config, and the rates that follow, pure functions of the step, so that
resuming needs no scheduler state.

All of them warm up linearly from `initial` to `peak`. A new kind is two classes, its keys and its rates, and its name
in `Schedule`, the one list of kinds.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from pipeline.durations import Duration, Pace, PositiveDuration
from pipeline.errors import UserError
from pipeline.records.strict import Strict


@dataclass(frozen=True)
class Rates(ABC):
    """A schedule with its durations resolved to steps of a stage. The decay ends at `horizon`; training stops after
    `steps` updates, before that or behind it. begin: where in the schedule the first of them is; another batch or
    another model may have brought it there, so that it need not be whole."""

    kind: str
    peak: float
    minimum: float
    initial: float
    warmup: int
    horizon: int
    steps: int
    begin: float = field(default=0, kw_only=True)

    def at(self, step: int) -> float:
        """The rate of the stage's update number `step`; the first is 0."""
        place = self.begin + step
        if place < self.warmup:
            return self.initial + (self.peak - self.initial) * place / self.warmup
        return self.after_warmup(place)

    @abstractmethod
    def after_warmup(self, step: float) -> float:
        """The rate of an update after the warm-up; from `horizon` on it stays what it is there."""

    def _decayed(self, share: float) -> float:
        """`share` of the way from the minimum (0) to the peak (1)."""
        return self.minimum + (self.peak - self.minimum) * share


@dataclass(frozen=True)
class CosineRates(Rates):
    """Half a cosine from the end of the warm-up to the horizon."""

    def after_warmup(self, step: float) -> float:
        return self._decayed(0.5 * (1.0 + math.cos(math.pi * _progress(step, self.warmup, self.horizon))))


@dataclass(frozen=True)
class LinearRates(Rates):
    """A straight line from the end of the warm-up to the horizon."""

    def after_warmup(self, step: float) -> float:
        return self._decayed(1.0 - _progress(step, self.warmup, self.horizon))


@dataclass(frozen=True)
class ConstantRates(Rates):
    """The peak, to the end."""

    def after_warmup(self, step: float) -> float:
        return self.peak


@dataclass(frozen=True)
class WarmupStableDecayRates(Rates):
    """The peak, then a straight line over the last `decay` steps before the horizon."""

    decay: int

    def after_warmup(self, step: float) -> float:
        return self._decayed(1.0 - _progress(step, self.horizon - self.decay, self.horizon))


def _progress(step: float, begin: int, end: int) -> float:
    """How far `step` is on the way from `begin` to `end`, clipped to 0 … 1."""
    return min(1.0, max(0, step - begin) / max(1, end - begin))


@dataclass(frozen=True)
class Span:
    """The part of a schedule that a stage trains. begin: behind how much of the horizon, in its unit; end: the share of
    it that is behind the stage's end."""

    begin: Fraction = Fraction(0)
    end: Fraction = Fraction(1)


WHOLE = Span()


class _Schedule(Strict, ABC):
    """What all kinds share. `minimum` is the rate at the end of the decay, and behind it. `steps` may become another
    duration when a stage goes on, one that has ended too: it decides none of the rates."""

    model_config = ConfigDict(serialize_by_alias=True)

    peak: float = Field(gt=0)
    minimum: float = Field(0.0, ge=0)
    initial: float = Field(0.0, ge=0, description="rate at step 0 of the warm-up")
    warmup: Duration = Duration.parse("0 steps")
    horizon: PositiveDuration
    steps: PositiveDuration | None = Field(None, description="length of the stage; default: to the end of the decay")
    continues: bool = Field(
        False,
        alias="continue",
        description="begin where the training before has ended, which has the same schedule; default: at its beginning",
    )
    kind: str

    @model_validator(mode="after")
    def _peak_is_highest(self) -> Self:
        if max(self.minimum, self.initial) > self.peak:
            raise ValueError(f"minimum {self.minimum} and initial {self.initial} may not be above peak {self.peak}")
        return self

    @abstractmethod
    def resolve(self, pace: Pace, span: Span = WHOLE) -> Rates:
        """Turn the durations into steps at this `pace`. Raises UserError when they do not fit into the horizon, or
        nothing of the span is left."""

    def _shared(self, pace: Pace, horizon: int, span: Span) -> dict[str, Any]:
        """The fields that all `Rates` have. Raises UserError when the warm-up would not end before the horizon."""
        warmup = self.warmup.steps(pace)
        if warmup >= horizon:
            raise UserError(
                f"the warm-up of {warmup} steps does not end before the horizon of {horizon} steps; shorten warmup"
            )
        begin = span.begin / pace.of(self.horizon.unit)
        left = math.ceil(span.end * horizon - begin)
        if not self.steps and left <= 0:
            raise UserError(
                f"it would end at step {float(span.end * horizon):.6g} of its horizon, and begins at "
                f"{float(begin):.6g}, where the training before ends; give that an earlier grow_at, or this a later"
            )
        return {
            "kind": self.kind,
            "peak": self.peak,
            "minimum": self.minimum,
            "initial": self.initial,
            "warmup": warmup,
            "horizon": horizon,
            "steps": self.steps.steps(pace) if self.steps else left,
            "begin": int(begin) if begin.denominator == 1 else float(begin),
        }


class CosineSchedule(_Schedule):
    """Warm-up, then half a cosine to `minimum` at the horizon."""

    kind: Literal["cosine"] = "cosine"

    def resolve(self, pace: Pace, span: Span = WHOLE) -> Rates:
        return CosineRates(**self._shared(pace, self.horizon.steps(pace), span))


class LinearSchedule(_Schedule):
    """Warm-up, then a straight line to `minimum` at the horizon."""

    kind: Literal["linear"]

    def resolve(self, pace: Pace, span: Span = WHOLE) -> Rates:
        return LinearRates(**self._shared(pace, self.horizon.steps(pace), span))


class ConstantSchedule(_Schedule):
    """Warm-up, then `peak` to the horizon."""

    kind: Literal["constant"]

    def resolve(self, pace: Pace, span: Span = WHOLE) -> Rates:
        return ConstantRates(**self._shared(pace, self.horizon.steps(pace), span))


class LemonSchedule(_Schedule):
    """LEMON's (arXiv:2310.07999): the from-scratch cosine with the same peak, and its horizon shortened to
    `fraction * horizon`."""

    kind: Literal["lemon"]
    fraction: float = Field(gt=0, le=1)

    def resolve(self, pace: Pace, span: Span = WHOLE) -> Rates:
        # 0.55 * 100 is 55.00000000000001 in binary floats, and must not become 56 steps
        horizon = math.ceil(round(self.fraction * self.horizon.steps(pace), 6))
        return CosineRates(**self._shared(pace, horizon, span))


class WarmupStableDecaySchedule(_Schedule):
    """Warm-up, `peak` for most of the horizon, then a straight line to `minimum` over its last `decay`
    (MiniCPM, arXiv:2404.06395)."""

    kind: Literal["wsd"]
    decay: PositiveDuration

    def resolve(self, pace: Pace, span: Span = WHOLE) -> Rates:
        shared, decay = self._shared(pace, self.horizon.steps(pace), span), self.decay.steps(pace)
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
