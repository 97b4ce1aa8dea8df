"""Rates pinned to numbers computed by hand; durations in every unit."""

import math
from fractions import Fraction
from typing import get_args

import pytest
from pydantic import TypeAdapter

from pipeline.durations import Duration, Pace, share
from pipeline.errors import UserError
from pipeline.optim.schedules import WHOLE, Schedule, Span

PACE = Pace(samples=10, tokens=1000, flops=10**9, samples_per_epoch=200)


def rates(span: Span = WHOLE, pace: Pace = PACE, **fields):
    keys = {"peak": 1.0, "minimum": 0.1, "warmup": "10 steps", "horizon": "110 steps", **fields}
    return TypeAdapter(Schedule).validate_python(keys).resolve(pace, span)


@pytest.mark.parametrize(
    "text, steps",
    [
        ("600 steps", 600),
        ("1 step", 1),
        ("1e4 tokens", 10),
        ("10001 tokens", 11),
        ("3 epochs", 60),
        ("0.5 epochs", 10),
        ("1e12 flops", 1000),
        ("1_000 samples", 100),
        ("2.5e9 flops", 3),
    ],
)
def test_durations_become_steps_rounded_up(text, steps):
    assert Duration.parse(text).steps(PACE) == steps


@pytest.mark.parametrize(
    "text, complaint",
    [
        (600, "a number and a unit"),
        ("600", "a number and a unit"),
        ("many steps", "a number and a unit"),
        ("3 weeks", "unknown unit 'weeks' in '3 weeks'; known: steps, samples, tokens, epochs, flops"),
    ],
)
def test_bad_durations_say_what_is_wrong(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        Duration.parse(text)


def test_durations_are_written_as_they_are_read():
    for text in ("600 steps", "0.5 epochs", "1000000000 tokens"):
        assert str(Duration.parse(text)) == text


def test_cosine():
    cosine = rates(kind="cosine")
    assert rates() == cosine, "cosine is the default kind"
    assert [cosine.at(step) for step in (0, 5, 10, 60, 110, 500)] == pytest.approx([0, 0.5, 1.0, 0.55, 0.1, 0.1])
    assert cosine.at(35) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + 2**-0.5))


def test_linear_constant_and_a_warmup_that_does_not_start_at_zero():
    assert [rates(kind="linear").at(step) for step in (10, 35, 60, 110)] == pytest.approx([1.0, 0.775, 0.55, 0.1])
    assert [rates(kind="constant", initial=0.2).at(step) for step in (0, 5, 10, 109)] == pytest.approx(
        [0.2, 0.6, 1.0, 1.0]
    )


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


def test_warmup_stable_decay():
    """Up to 1 in 10 steps, there until 90, down to 0.1 in the last 20."""
    wsd = rates(kind="wsd", decay="20 steps")
    assert [wsd.at(step) for step in (0, 5, 10, 50, 90, 95, 100, 105, 110, 500)] == pytest.approx(
        [0, 0.5, 1, 1, 1, 0.775, 0.55, 0.325, 0.1, 0.1]
    )
    assert wsd.steps == 110
    assert rates(kind="wsd", decay="2 epochs", horizon="10 epochs").at(180) == pytest.approx(0.55), (
        "20 steps are an epoch"
    )
    assert rates(kind="wsd", decay="100 steps").at(60) == pytest.approx(0.55), (
        "no stable part: a line from the warm-up on"
    )


def test_a_decay_fits_behind_the_warmup():
    with pytest.raises(
        UserError, match="a warm-up of 10 steps and a decay of 101 steps do not fit into the horizon of 110 steps"
    ):
        rates(kind="wsd", decay="101 steps")


KINDS = [get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(get_args(Schedule)[0])]
OWN_KEYS = {"lemon": {"fraction": 1.0}, "wsd": {"decay": "50 steps"}}
"""Of the kinds that have keys of their own without a default."""
LAST_RATE = {"constant": 1.0}
"""Of the kinds that do not end at `minimum`."""
RISES: set[str] = set()
"""The kinds whose rate rises again behind the warm-up."""
SAME_RATES = {"lemon": "cosine"}
"""Kinds that give the rates of another one, over a shorter horizon."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_warms_up_and_stays_where_it_ended(kind):
    resolved = rates(kind=kind, initial=0.2, **OWN_KEYS.get(kind, {}))
    assert [resolved.at(step) for step in (0, 5, 10)] == pytest.approx([0.2, 0.6, 1.0])
    assert resolved.at(110) == resolved.at(10**6) == pytest.approx(LAST_RATE.get(kind, 0.1))
    assert all(resolved.at(step) >= resolved.at(step + 1) for step in range(10, 110)) == (kind not in RISES)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", ["5 steps", "60 steps", "7 epochs"])
def test_the_length_of_a_stage_decides_none_of_its_rates(kind, length):
    """Shorter than the warm-up, in the decay, behind it."""
    whole, other = (rates(kind=kind, **OWN_KEYS.get(kind, {}), **more) for more in ({}, {"steps": length}))
    assert other.steps == Duration.parse(length).steps(PACE) and other.horizon == whole.horizon == whole.steps == 110
    assert [other.at(step) for step in range(150)] == [whole.at(step) for step in range(150)]


def test_a_length_need_not_end_behind_the_warmup_but_is_more_than_nothing():
    assert rates(steps="1 step").steps == 1
    with pytest.raises(ValueError, match="'0 steps' is not positive"):
        rates(steps="0 steps")


@pytest.mark.parametrize("kind", KINDS)
def test_the_facts_of_every_kind_say_what_a_report_shows(kind):
    facts = vars(rates(kind=kind, **OWN_KEYS.get(kind, {})))
    assert {
        "kind": kind,
        "peak": 1.0,
        "minimum": 0.1,
        "initial": 0.0,
        "warmup": 10,
        "horizon": 110,
        "steps": 110,
    }.items() <= facts.items()


def test_no_two_kinds_give_the_same_rates():
    """None falls through to another."""
    distinct = [kind for kind in KINDS if kind not in SAME_RATES]
    curves = {tuple(rates(kind=kind, **OWN_KEYS.get(kind, {})).at(step) for step in range(110)) for kind in distinct}
    assert len(curves) == len(distinct)
    assert math.isclose(rates(kind="lemon", fraction=0.5).at(55), 0.1), "lemon is a shorter cosine"


def test_a_fraction_goes_with_lemon_only():
    assert rates(kind="linear", fraction=None) == rates(kind="linear"), "as older configs were written out"
    with pytest.raises(ValueError, match="fraction"):
        rates(kind="cosine", fraction=0.5)
    with pytest.raises(ValueError, match="fraction"):
        rates(kind="lemon")


IN_PARTS = [{"kind": "cosine"}, {"kind": "linear"}, {"kind": "constant"}, {"kind": "wsd", "decay": "20 steps"}]
IN_PARTS += [{"kind": "lemon", "fraction": 0.5}]


@pytest.mark.parametrize("keys", IN_PARTS, ids=lambda keys: keys["kind"])
def test_parts_of_a_schedule_have_its_rates(keys):
    """To the bit, of three stages, the second of which ends within the decay."""
    whole = rates(**keys)
    at = [0, math.ceil(Fraction(3, 10) * whole.horizon), math.ceil(Fraction(9, 10) * whole.horizon), whole.horizon]
    ends = [Fraction(3, 10), Fraction(9, 10), Fraction(1)]
    found = []
    for begin, end, until in zip(at, at[1:], ends, strict=False):
        part = rates(Span(Fraction(begin), until), **keys)
        assert (part.begin, part.steps, part.horizon) == (begin, end - begin, whole.horizon)
        found += [part.at(step) for step in range(part.steps)]
    assert found == [whole.at(step) for step in range(whole.steps)]


def test_another_pace_goes_on_at_the_same_place():
    """40 % of 100,000 tokens, at 1,000 and then at 3,000 a step: the second begins 13 1/3 of its steps in."""
    keys = {"kind": "linear", "minimum": 0.0, "warmup": "0 steps", "horizon": "100000 tokens"}
    first = rates(Span(end=Fraction(2, 5)), **keys)
    larger = Pace(samples=30, tokens=3000, flops=10**9, samples_per_epoch=200)
    second = rates(Span(Fraction(40_000)), larger, **keys)
    assert (first.steps, second.steps, second.begin) == (40, 21, pytest.approx(40 / 3))
    assert (second.at(0), second.at(10)) == pytest.approx((1 - 40 / 3 / 34, 1 - 70 / 3 / 34))


def test_nothing_is_left_of_a_schedule():
    with pytest.raises(UserError, match="would end at step 55 of its horizon, and begins at 60, where"):
        rates(Span(Fraction(60), Fraction(1, 2)))


@pytest.mark.parametrize("text", ["80", "0 %", "101 %", "-5 %", 0.8, "80 % of it"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ValueError, match=r"a share needs|is not between"):
        share(text)
    assert share("12.5 %") == Fraction(1, 8) and share("100%") == 1
