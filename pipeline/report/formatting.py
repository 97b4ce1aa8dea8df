"""Numbers for readers, rounded and with units; report.json has the exact integers."""

import json
import math
from collections.abc import Iterable
from typing import Any

PREFIXES = ("", "K", "M", "G", "T", "P", "E", "Z", "Y")
"""Powers of 1000."""
MINUS = "\N{MINUS SIGN}"
THIN = "\N{NARROW NO-BREAK SPACE}"


def scale(amount: float) -> tuple[int, str]:
    """The power of 1000 and its prefix that bring `amount` into 1 … 1000, after rounding to three digits."""
    power = 0
    while power < len(PREFIXES) - 1 and amount / 1000**power >= 999.5:
        power += 1
    return power, PREFIXES[power]


def three_digits(number: float) -> str:
    """`1.23`, `12.3`, `123`."""
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"


def flops(amount: int | None) -> str:
    """`1.23 PFLOPs`."""
    if amount is None:
        return "–"
    power, prefix = scale(amount)
    return f"{three_digits(amount / 1000**power) if power else amount} {prefix}FLOPs"


def count(amount: int) -> str:
    """Exact below ten million (`51 200`), then three digits (`12.3 M`)."""
    if abs(amount) < 10_000_000:
        return f"{amount:,}".replace(",", THIN)
    power, prefix = scale(amount)
    return f"{three_digits(amount / 1000**power)} {prefix}"


def decimal(number: float | None, digits: int = 4) -> str:
    """A loss or a rate with a fixed number of decimals."""
    return "–" if number is None else f"{number:.{digits}f}".replace("-", MINUS)


def percent(fraction: float | None) -> str:
    """`12.3 %` from 0.123; what would round to zero is `< 0.1 %`."""
    if fraction is None:
        return "–"
    return "< 0.1 %" if 0 < fraction < 0.0005 else f"{100 * fraction:.1f} %"


def scientific(number: float | None) -> str:
    """`3.1e−08`; zero is `0`."""
    return "–" if number is None else "0" if number == 0 else f"{number:.1e}".replace("-", MINUS)


def signed(difference: float | None) -> str:
    """A difference of losses with its sign; below what six decimals show, scientific."""
    if difference is None:
        return "–"
    text = scientific(difference) if abs(difference) < 1e-4 else decimal(difference, 6)
    return f"+{text}" if difference > 0 else text


def rate(per_second: float | None) -> str:
    """Samples or tokens in a second: `12.3`, `51 200`."""
    return "–" if per_second is None else three_digits(per_second) if per_second < 1000 else count(round(per_second))


def saving(share: float | None) -> str:
    """What a saving in per cent means: `saves 49.6 %`, `costs 12.3 % more`."""
    if share is None:
        return "no saving can be stated"
    if abs(share) < 0.05:
        return "costs the same"
    return f"saves {share:.1f} %" if share > 0 else f"costs {-share:.1f} % more"


def duration(seconds: float | None) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{three_digits(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def milliseconds(seconds: float) -> str:
    """`12.3 ms`."""
    return f"{three_digits(1000 * seconds)} ms"


OF_TRAINING = ("schedule", "settings", "flops_per_step", "samples_per_step", "tokens_per_step")
OF_EXPANSION = ("method", "method_options", "optimizer_state", "lossless")
SETTINGS = (*OF_TRAINING, *OF_EXPANSION, "config_change", "device", "versions")
"""The facts of a stage that are settings."""


def settings(facts: dict[str, Any], keys: Iterable[str] = SETTINGS, prefix: str = "") -> dict[str, str]:
    """The settings among a stage's facts, nested ones flat: `settings.optimizer.eps: 1e-08`."""
    flat: dict[str, str] = {}
    for key in (key for key in keys if key in facts):
        value = facts[key]
        if isinstance(value, dict):
            flat |= settings(value, value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat
