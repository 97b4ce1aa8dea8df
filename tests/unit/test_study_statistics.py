"""Intervals over seeds, and running means, against numbers worked out by hand."""

import math

import pytest

from pipeline.studies.curves import running_mean
from pipeline.studies.statistics import sample

T_4 = 2.7764451  # the 97.5 % quantile of Student's t with 4 degrees of freedom, from a printed table


def test_intervals_are_those_of_students_t():
    found = sample([50.0, 52.0, 54.0, 56.0, 58.0], 0.95)
    deviation = math.sqrt(10.0)
    assert found.n == 5 and found.mean == 54.0 and found.deviation == pytest.approx(deviation)
    assert found.low == pytest.approx(54.0 - T_4 * deviation / math.sqrt(5))
    assert found.high == pytest.approx(54.0 + T_4 * deviation / math.sqrt(5))
    assert found.next_low == pytest.approx(54.0 - T_4 * deviation * math.sqrt(1.2))
    assert found.next_high == pytest.approx(54.0 + T_4 * deviation * math.sqrt(1.2))


def test_a_single_seed_has_no_interval_and_none_has_no_mean():
    assert sample([], 0.95) is None
    one = sample([3.0], 0.95)
    assert one.mean == 3.0 and one.low is one.high is one.next_low is one.next_high is one.deviation is None


def test_a_wider_confidence_is_a_wider_interval():
    narrow, wide = (sample([1.0, 2.0, 4.0], share) for share in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_a_running_mean_ends_with_the_last_value():
    assert running_mean([1.0, 4.0, 1.0, 4.0, 7.0], 3) == [1.0, 2.0, 3.0, 4.0, 7.0]
    assert running_mean([5.0, 1.0], 3) == [5.0, 1.0] and running_mean([5.0, 1.0, 9.0], 1) == [5.0, 1.0, 9.0]
    assert running_mean([0.0, 0.0, 10.0, 0.0, 0.0], 5) == [0.0, 10 / 3, 2.0, 10 / 3, 0.0]
