"""The spike detector on invented series."""

import math
import random

import pytest

from pipeline.training.spikes import LOSS, NORM, Finding, LeastRise, SpikeDetector


def watched(values, window: int = 50, sigmas: float = 6.0, least: LeastRise = LOSS) -> list[int]:
    """Places in a series at which there is a spike."""
    detector, found = SpikeDetector(window, sigmas, least), []
    for place, value in enumerate(values):
        if detector.judge(value):
            found.append(place)
        detector.add(value)
    return found


def noisy(steps: int, level=lambda step: 4.0, sigma: float = 0.1, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(level(step), sigma) for step in range(steps)]


def test_noise_is_no_spike_and_a_spike_is_one():
    values = noisy(400)
    assert watched(values) == []
    values[200] += 1.0
    assert watched(values) == [200]


def test_a_falling_loss_and_a_warm_up_of_the_norm_are_none():
    assert watched(noisy(400, lambda step: 2 + 8 * math.exp(-step / 60))) == []
    assert watched(noisy(400, lambda step: 1 + step / 100, sigma=0.05), sigmas=10) == []


def test_the_first_steps_are_not_judged():
    assert watched([9.0, *noisy(48), 30.0, 30.0]) == [50]


def test_spikes_in_the_window_do_not_raise_the_limit_by_much():
    values = noisy(200)
    for place in range(100, 110):
        values[place] = 50.0
    assert watched(values) == list(range(100, 110))


def test_another_level_that_stays_is_no_spike_for_ever():
    found = watched(noisy(200, lambda step: 4.0 if step < 100 else 6.0))
    assert found and found[0] == 100 and found[-1] < 130


def test_a_flat_curve_has_no_spikes_but_real_ones():
    assert watched([4.0] * 100 + [4.4] + [4.0] * 20 + [4.6]) == [121]
    assert watched([4.0] * 100 + [19.9] + [4.0] * 20 + [20.1], least=NORM) == [121]


def test_a_hard_batch_of_a_model_that_is_nearly_done_is_none():
    """As it came in the last step of a healthy run of the ViT quick start, sixteen deviations off."""
    values = [*noisy(100, lambda step: 0.1, sigma=0.0035), 0.157]
    assert watched(values, least=LeastRise()) == [100] and watched(values) == []


@pytest.mark.parametrize("value, problem", [(math.nan, "nan"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_what_is_no_number_is_found_at_once_and_never_enters_the_window(value, problem):
    detector = SpikeDetector(8, 6.0, LOSS, [1.0] * 7)
    assert detector.judge(value) == Finding(problem)
    detector.add(value)
    assert len(detector.values) == 7 and detector.limit is None


def test_no_value_is_no_spike():
    """ZeRO-0 in fp32 without clipping has no norm."""
    detector = SpikeDetector(8, 6.0, NORM)
    detector.add(None)
    assert detector.judge(None) is None and not detector.values


def test_the_norm_of_a_model_that_begins_to_learn_is_none():
    """As it came around step 110 of a healthy run of the BERT quick start, from scratch."""
    values = [*noisy(100, lambda step: 0.46, sigma=0.03), 1.52, 1.62, 1.45, 1.75, 1.64]
    assert watched(values, least=LeastRise()) and watched(values, least=NORM) == []
