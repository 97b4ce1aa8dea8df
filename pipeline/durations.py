"""Durations carry a unit: `600 steps`, `1e9 tokens`, `3 epochs`, `50000 samples`, `2e15 flops`.

A training stage knows what one optimizer step amounts to in each unit (its `Pace`), which turns every duration
into a whole number of steps, rounded up.
"""

import math
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, GetCoreSchemaHandler
from pydantic_core import core_schema

from pipeline.errors import one_line

LARGEST = 1e30
"""More than anybody trains, in any unit: all FLOPs of an exaflop machine in 30,000 years."""
LARGEST_TIME = 86400 * 36_500
"""Seconds of a hundred years."""
UNITS = ("steps", "samples", "tokens", "epochs", "flops")
_SYNTAX = re.compile(r"^\s*([0-9][0-9_.]*(?:[eE][+-]?[0-9]+)?)\s*([a-z]+)\s*$")


def _split(text: Any, units: Collection[str], what: str, example: str) -> tuple[str, str]:
    """The digits and the unit of a text. Raises ValueError for a bare number, an unknown unit and bad syntax."""
    match = _SYNTAX.match(text) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"{what} needs a number and a unit, such as '{example}', not {text!r}")
    number, name = match.groups()
    unit = name if name.endswith("s") else name + "s"
    if unit not in units:
        raise ValueError(f"unknown unit '{name}' in {text!r}; known: {', '.join(units)}")
    return number.replace("_", ""), unit


@dataclass(frozen=True)
class Pace:
    """Samples, tokens and FLOPs of one optimizer step. samples_per_epoch: the size of the training set."""

    samples: int
    tokens: int
    flops: int
    samples_per_epoch: int

    def of(self, unit: str) -> Fraction:
        """One step in `unit`, exactly."""
        if unit == "epochs":
            return Fraction(self.samples, self.samples_per_epoch)
        return Fraction({"steps": 1, "samples": self.samples, "tokens": self.tokens, "flops": self.flops}[unit])


@dataclass(frozen=True)
class Duration:
    """An amount and its unit, as written in a config."""

    amount: Fraction
    unit: str

    @classmethod
    def parse(cls, text: Any) -> "Duration":
        """Read `'600 steps'`. Raises ValueError on a bare number, an unknown unit, bad syntax, or far too much."""
        digits, unit = _split(text, UNITS, "a duration", "600 steps")
        if float(digits) > LARGEST:
            raise ValueError(f"{one_line(text, 40)} is more than {LARGEST:.0e} {unit}; is it a typing error?")
        return cls(Fraction(digits), unit)

    def steps(self, pace: Pace) -> int:
        """Whole optimizer steps, rounded up."""
        return math.ceil(self.amount / pace.of(self.unit))

    def __str__(self) -> str:
        amount = self.amount
        return f"{amount if amount.denominator == 1 else float(amount)} {self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            lambda value: value if isinstance(value, cls) else cls.parse(value),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )


def _positive(duration: Duration) -> Duration:
    if duration.amount <= 0:
        raise ValueError(f"'{duration}' is not positive; choose more than 0")
    return duration


_SHARE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*$")


def share(text: Any) -> Fraction:
    """Read `'80 %'`. Raises ValueError on a number without the sign, on 0 and on more than 100 %."""
    match = _SHARE.match(text) if isinstance(text, str) else None
    if not match:
        raise ValueError(f"a share needs a number and a percent sign, such as '80 %', not {one_line(repr(text), 40)}")
    found = Fraction(match[1]) / 100
    if not 0 < found <= 1:
        raise ValueError(f"'{text}' is not between 0 and 100 %")
    return found


def _read_by(read: Callable[[Any], object]) -> BeforeValidator:
    """Let a text stay as it is, if `read` understands it."""

    def kept(text: Any) -> Any:
        read(text)
        return text

    return BeforeValidator(kept)


Share = Annotated[str, _read_by(share)]
"""A part of something, as a field of a config."""
TIME_UNITS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86400}


def seconds(text: Any) -> float:
    """Read `'12 hours'`. Raises ValueError on a bare number, an unknown unit, bad syntax, nothing, or far too much."""
    digits, unit = _split(text, TIME_UNITS, "a time", "12 hours")
    amount = float(digits) * TIME_UNITS[unit]
    if not 0 < amount <= LARGEST_TIME:
        raise ValueError(f"{one_line(text, 40)} is not between nothing and {LARGEST_TIME // 86400:,} days")
    return amount


Time = Annotated[str, _read_by(seconds)]
"""A span of time, as a field of a config."""
PositiveDuration = Annotated[Duration, AfterValidator(_positive)]
"""A duration greater than zero, as a field of a config."""
