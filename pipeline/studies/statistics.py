"""Means over seeds with their doubt, by Student's t: the seeds are a small sample."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from scipy.stats import t as student

from pipeline.accounting.recorded_runs import Content


class Sample(Content):
    """n values, one a seed. low, high: the interval of confidence of their mean; next_low, next_high: the interval of
    prediction, in which the value of one further seed is to be expected; None of a single value.

        mean ± t s / sqrt(n)        mean ± t s sqrt(1 + 1 / n)        t of n - 1 degrees of freedom
    """

    n: int
    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    next_low: float | None
    next_high: float | None


def sample(values: Sequence[float], confidence: float) -> Sample | None:
    """None where there is no value."""
    n = len(values)
    if not n:
        return None
    middle = mean(values)
    if n == 1:
        empty = dict.fromkeys(("deviation", "low", "high", "next_low", "next_high"))
        return Sample(n=1, mean=middle, **empty)
    deviation = stdev(values)
    factor = float(student.ppf((1 + confidence) / 2, n - 1))
    of_mean, of_next = factor * deviation / math.sqrt(n), factor * deviation * math.sqrt(1 + 1 / n)
    return Sample(
        n=n,
        mean=middle,
        deviation=deviation,
        low=middle - of_mean,
        high=middle + of_mean,
        next_low=middle - of_next,
        next_high=middle + of_next,
    )
