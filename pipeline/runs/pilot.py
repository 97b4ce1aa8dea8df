"""When to grow: a pilot measures how long a grown model's loss takes to mix with that of one trained at full size.

Behind a growth the loss lies above the full-size model's, and comes down to it while the rate is constant; a growth so
late that this does not end before the decay begins is paid for at the end (arXiv:2511.04981). So two short runs at the
constant rate of the schedule are trained on the same samples, one at full size, one that grows early, and compared at
equal steps. The latest growth that still mixes lies as long before the decay as that took; that it takes equally long
wherever it begins is an assumption.
"""

import logging
import os
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.accounting.recorded_runs import Evaluation, RecordReader
from pipeline.config.schema import Config, ExpandStage, TrainStage
from pipeline.durations import Duration
from pipeline.errors import UserError
from pipeline.runs import run
from pipeline.training.launcher import Start

logger = logging.getLogger(__name__)

FULL, BEFORE, GROWTH, BEHIND = "full", "before", "growth", "behind"
"""The stages of a pilot's run."""
STABLE = ("wsd", "constant")
"""Schedules that have a constant rate for most of their horizon."""
EVALUATIONS = 20
"""Behind the growth, and as often before it and at full size."""


@dataclass(frozen=True)
class Wanted:
    """stage: the expansion; None: the only one within one schedule. grow_at, length: shares of the horizon before the
    pilot's growth and behind it. within: the largest share that counts as mixed by which losses are apart."""

    stage: str | None
    grow_at: Fraction
    length: Fraction
    within: float


class Point(BaseModel):
    """One evaluation behind the growth. step: of the large model, counted from there; gap: by what share the loss is
    above that at full size, which may lie between two evaluations."""

    model_config = ConfigDict(frozen=True)

    step: int
    grown: float
    full: float
    gap: float


class Mixing(BaseModel):
    """What a pilot found. Steps are the large model's. within: the largest gap that counts as mixed. steps: behind the
    growth until it is no larger any more; None: it was at the end. horizon, decay: of the run that is planned. latest:
    the share of the horizon at which a growth still mixes before the decay; None: nothing is left for it."""

    model_config = ConfigDict(frozen=True)

    within: float
    points: list[Point]
    steps: int | None
    horizon: int
    decay: int
    latest: float | None


def measure(config: Config, wanted: Wanted, start: Start) -> Mixing | None:
    """Train the pilot of an expansion, or go on with it, and say what it found; None on nodes that are not the first.
    Raises UserError."""
    growth = growth_of(config, wanted.stage)
    derived = pilot_of(config, growth, wanted.grow_at, wanted.length)
    run.prepare_alone(config, start)
    if start.first:
        _share_data(config, derived)
    run.run(derived, start)
    return mixing(config, derived, growth, wanted.within) if start.first else None


def growth_of(config: Config, name: str | None) -> ExpandStage:
    """The expansion that is meant. Raises UserError."""
    known = [stage for stage in config.stages if isinstance(stage, ExpandStage) and _behind(config, stage)]
    names = ", ".join(stage.name for stage in known)
    if not known:
        raise UserError(
            f"config '{config.name}' grows no model within one schedule: give the training behind an expansion "
            "schedule.continue: true"
        )
    if name is None and len(known) > 1:
        raise UserError(f"config '{config.name}' has {len(known)} growths; choose one with --stage: {names}")
    found = next((stage for stage in known if stage.name == (name or known[0].name)), None)
    if found is None:
        raise UserError(f"--stage {name}: no expansion within one schedule; there are {names}")
    return found


def _behind(config: Config, growth: ExpandStage) -> TrainStage | None:
    """The training that goes on with the schedule behind an expansion."""
    readers = [stage for stage in config.stages if isinstance(stage, TrainStage) and stage.start == growth.name]
    return next((stage for stage in readers if stage.schedule.continues), None)


def pilot_of(config: Config, growth: ExpandStage, grow_at: Fraction, length: Fraction) -> Config:
    """The pilot's run: its folder lies beside the run's. Raises UserError for a schedule without a constant rate."""
    behind, before = _behind(config, growth), config.trained_before(growth)
    assert behind is not None and before is not None, "an expansion within one schedule"
    kind = behind.schedule.kind
    if kind not in STABLE:
        raise UserError(
            f"stages.{behind.name}.schedule.kind: {kind} has no constant rate at which losses could mix; "
            "a pilot is for wsd"
        )
    horizon = behind.schedule.horizon
    every = Duration(horizon.amount * length / EVALUATIONS, horizon.unit)
    schedule = _constant(behind, Duration(horizon.amount * (grow_at + length), horizon.unit))
    data = {**behind.data.model_dump(mode="json", by_alias=True), "continue": False}
    alone = {"start": None, "rewarm": None, "data": data}
    shared = {"evaluate_every": str(every), "stop": None, "grow_at": None, "schedule": schedule}
    small = {"grow_at": f"{float(100 * grow_at / (grow_at + length)):.8f} %"}
    on = {"schedule": {**schedule, "continue": True}, "data": {**data, "continue": True}, "start": GROWTH}
    stages = [
        {**_keys(behind), **alone, **shared, "name": FULL},
        {**_keys(before), **alone, **shared, **small, "name": BEFORE},
        {**_keys(growth), "name": GROWTH, "source": BEFORE},
        {**_keys(behind), **shared, **on, "name": BEHIND},
    ]
    name = f"{config.name}-pilot-{growth.name}"
    content = config.model_dump(mode="json", by_alias=True)
    folder = config.path.with_name(f"{config.path.name}-pilot-{growth.name}")
    return Config.model_validate({**content, "name": name, "folder": str(folder), "stages": stages})


def _keys(stage: TrainStage | ExpandStage) -> dict[str, Any]:
    return stage.model_dump(mode="json", by_alias=True)


def _constant(behind: TrainStage, horizon: Duration) -> dict[str, Any]:
    """The schedule of a stage without its decay."""
    kept = {key: value for key, value in _keys(behind)["schedule"].items() if key in ("peak", "initial", "warmup")}
    return {**kept, "kind": "constant", "horizon": str(horizon)}


def _share_data(config: Config, derived: Config) -> None:
    """The pilot reads what has been prepared for the run."""
    derived.path.mkdir(parents=True, exist_ok=True)
    place = derived.path / "data"
    if not place.exists():
        place.symlink_to(os.path.relpath(config.path / "data", derived.path))


def mixing(config: Config, derived: Config, growth: ExpandStage, within: float) -> Mixing:
    """What the pilot's records say."""
    reader = RecordReader()
    full, behind = (reader.stage(derived.path / name) for name in (FULL, BEHIND))
    begin = behind.training.schedule.get("begin", 0) if behind.training else 0
    found = points(full.evaluations, behind.evaluations, begin)
    horizon, decay = _planned(config, growth)
    steps = mixed_behind(found, within)
    left = None if steps is None else horizon - decay - steps
    latest = None if left is None or left <= 0 else left / horizon
    return Mixing(within=within, points=found, steps=steps, horizon=horizon, decay=decay, latest=latest)


def points(full: list[Evaluation], grown: list[Evaluation], begin: float) -> list[Point]:
    """The evaluations of a grown model beside the loss at full size, linear between two of its evaluations. begin:
    steps of the large model that what came before the growth is worth."""
    found = []
    for each in grown:
        place = begin + each.step
        pairs = ((a, b) for a, b in pairwise(full) if a.step <= place <= b.step)
        if pair := next(pairs, None):
            a, b = pair
            loss = a.loss + (b.loss - a.loss) * (place - a.step) / (b.step - a.step)
            found.append(Point(step=each.step, grown=each.loss, full=loss, gap=each.loss / loss - 1))
    return found


def mixed_behind(found: list[Point], within: float) -> int | None:
    """The first step from which on no gap is larger than `within`; None: the last one is."""
    apart = [index for index, point in enumerate(found) if point.gap > within]
    first = apart[-1] + 1 if apart else 0
    return found[first].step if first < len(found) else None


def _planned(config: Config, growth: ExpandStage) -> tuple[int, int]:
    """Steps of the large model of the planned run's horizon, and of its decay."""
    from pipeline import models
    from pipeline.data import data_of
    from pipeline.training.length import pace

    behind = _behind(config, growth)
    assert behind is not None, "an expansion within one schedule"
    data = data_of(config, behind)
    worth = pace(behind, models.trained(config.models[behind.model], data.facts), data)
    decay: Duration | None = getattr(behind.schedule, "decay", None)
    return behind.schedule.horizon.steps(worth), decay.steps(worth) if decay else 0
