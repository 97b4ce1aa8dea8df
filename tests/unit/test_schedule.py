"""Rates pinned to numbers computed by hand; durations in every unit."""

import pytest

from pipeline.config import Schedule
from pipeline.durations import Duration, Pace
from pipeline.errors import UserError
from pipeline.schedule import resolve

PACE = Pace(samples=10, tokens=1000, flops=10**9, samples_per_epoch=200)


def rates(**fields):
    return resolve(Schedule.model_validate({"peak": 1.0, "minimum": 0.1, "warmup": "10 steps", "horizon": "110 steps", **fields}), PACE)


@pytest.mark.parametrize("text, steps", [
    ("600 steps", 600), ("1 step", 1), ("1e4 tokens", 10), ("10001 tokens", 11), ("3 epochs", 60), ("0.5 epochs", 10),
    ("1e12 flops", 1000), ("1_000 samples", 100), ("2.5e9 flops", 3),
])
def test_durations_become_steps_rounded_up(text, steps):
    assert Duration.parse(text).steps(PACE) == steps


@pytest.mark.parametrize("text, complaint", [
    (600, "a number and a unit"), ("600", "a number and a unit"), ("many steps", "a number and a unit"),
    ("3 weeks", "unknown unit 'weeks' in '3 weeks'; known: steps, samples, tokens, epochs, flops"),
])
def test_bad_durations_say_what_is_wrong(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        Duration.parse(text)


def test_durations_are_written_as_they_are_read():
    for text in ("600 steps", "0.5 epochs", "1000000000 tokens"):
        assert str(Duration.parse(text)) == text


def test_cosine():
    cosine = rates(kind="cosine")
    assert [cosine.at(step) for step in (0, 5, 10, 60, 110, 500)] == pytest.approx([0, 0.5, 1.0, 0.55, 0.1, 0.1])
    assert cosine.at(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + 2**-0.5))


def test_linear_constant_and_a_warmup_that_does_not_start_at_zero():
    assert [rates(kind="linear").at(step) for step in (10, 35, 60, 110)] == pytest.approx([1.0, 0.775, 0.55, 0.1])
    assert [rates(kind="constant", initial=0.2).at(step) for step in (0, 5, 10, 109)] == pytest.approx([0.2, 0.6, 1.0, 1.0])


def test_lemon_keeps_the_peak_and_shortens_the_horizon():
    """The published ViT-B/16 set-up: 130 of 300 epochs, same peak, same minimum, same warm-up."""
    vit = {"peak": 1e-3, "minimum": 1e-5, "initial": 1e-6, "warmup": "5 epochs", "horizon": "300 epochs"}
    scratch, lemon = rates(kind="cosine", **vit), rates(kind="lemon", fraction=130 / 300, **vit)
    assert (scratch.steps, lemon.steps) == (6000, 2600)
    assert lemon.at(100) == scratch.at(100) == 1e-3
    assert lemon.at(50) == scratch.at(50)
    assert lemon.at(2600) == pytest.approx(1e-5)
    assert lemon.at(1350) == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5))  # half of the way from 100 to 2600


@pytest.mark.parametrize("fraction, horizon, steps", [(0.55, 100, 55), (0.07, 100, 7), (0.28, 25, 7), (0.5, 25, 13)])
def test_a_fraction_is_taken_as_written(fraction, horizon, steps):
    assert rates(kind="lemon", fraction=fraction, horizon=f"{horizon} steps", warmup="1 step").steps == steps


def test_a_warmup_must_end_before_the_horizon():
    with pytest.raises(UserError, match="the warm-up of 10 steps does not end before the horizon of 10 steps"):
        rates(horizon="10 steps")


def test_a_fraction_goes_with_lemon_only():
    for fields in ({"kind": "lemon"}, {"kind": "cosine", "fraction": 0.5}):
        with pytest.raises(ValueError, match="'fraction' goes with kind 'lemon'"):
            rates(**fields)
