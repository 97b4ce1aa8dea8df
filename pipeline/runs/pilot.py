"""When to grow: a pilot measures how long a grown model's loss takes to mix with that of one trained at full size.

Behind a growth the loss lies above the full-size model's, and comes down to it while the rate is constant; a growth so
late that this does not end before the decay begins is paid for at the end (arXiv:2511.04981). So two short runs at the
constant rate of the schedule are trained on the same samples, one at full size, one that grows early, and compared at
equal steps. The latest growth that still mixes lies as long before the decay as that took; that it takes equally long
wherever it begins is an assumption.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.accounting.recorded_runs import Evaluation, RecordReader
from pipeline.config.schema import Config, ExpandStage, TrainStage
from pipeline.config.validation_errors import explain
from pipeline.durations import Duration
from pipeline.errors import UserError
from pipeline.runs import run, shared_data
from pipeline.training.launcher import Start

FULL, BEFORE, GROWTH, BEHIND = "full", "before", "growth", "behind"
"""The stages of a pilot's run; several expansions that follow each other are numbered."""
STABLE = ("wsd", "constant")
"""Schedules that have a constant rate for most of their horizon."""
EVALUATIONS = 20
"""Behind the growth."""


@dataclass(frozen=True)
class Wanted:
    """stage: the expansion; None: the only one within one schedule. grow_at, length: shares of the horizon before the
    pilot's growth and behind it. within: the largest share that counts as mixed by which losses are apart."""

    stage: str | None
    grow_at: Fraction
    length: Fraction
    within: float


@dataclass(frozen=True)
class Growth:
    """A growth within one schedule: the training before it, the expansions that follow each other, the training
    behind them."""

    before: TrainStage
    expansions: tuple[ExpandStage, ...]
    behind: TrainStage

    @property
    def name(self) -> str:
        return self.expansions[-1].name


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
    growth until it is no larger any more; None: it was at the end. moved: whether the loss at full size has moved by
    more than that meanwhile, without which nothing can be told. horizon, decay: of the run that is planned.
    latest_percent: of its horizon, at which a growth still mixes before the decay; None: nothing is left for it."""

    model_config = ConfigDict(frozen=True)

    within: float
    points: list[Point]
    steps: int | None
    moved: bool
    horizon: int
    decay: int
    latest_percent: int | None


def measure(config: Config, wanted: Wanted, start: Start) -> Mixing | None:
    """Train the pilot of an expansion, or go on with it, and say what it found; None on nodes that are not the first.
    Raises UserError."""
    growth = growth_of(config, wanted.stage)
    derived = pilot_of(config, growth, wanted)
    run.prepare_alone(config, start)
    if start.first:
        shared_data.share(config.path / "data", derived.path)
    run.run(derived, start)
    return mixing(config, derived, growth, wanted.within) if start.first else None


def growth_of(config: Config, name: str | None) -> Growth:
    """The growth that is meant, by the name of one of its expansions. Raises UserError."""
    known = list(_growths(config))
    names = ", ".join(growth.name for growth in known)
    if not known:
        raise UserError(
            f"config '{config.name}' grows no model within one schedule: give the training behind an expansion "
            "schedule.continue: true"
        )
    if name is None and len(known) > 1:
        raise UserError(f"config '{config.name}' has {len(known)} growths; choose one with --stage: {names}")
    meant = [each for each in known if name is None or name in {stage.name for stage in each.expansions}]
    if not meant:
        raise UserError(f"--stage {name}: no expansion within one schedule; there are {names}")
    return meant[0]


def _growths(config: Config) -> Iterator[Growth]:
    named = {stage.name: stage for stage in config.stages}
    for behind in config.stages:
        if isinstance(behind, TrainStage) and behind.schedule.continues:
            way: list[ExpandStage] = []
            each = named.get(behind.start or "")
            while isinstance(each, ExpandStage):
                way.insert(0, each)
                each = named.get(each.source)
            if way and isinstance(each, TrainStage):
                yield Growth(each, tuple(way), behind)


def pilot_of(config: Config, growth: Growth, wanted: Wanted) -> Config:
    """The pilot's run: its folder lies beside the run's. Raises UserError where there is no constant rate to train at,
    and where the run itself begins from a checkpoint, beside which there is no model of full size."""
    _require_possible(config, growth, wanted)
    schedule = growth.behind.schedule
    horizon, constant = schedule.horizon, _constant(growth.behind)

    def after(share: Fraction) -> str:
        return str(Duration(horizon.amount * share, horizon.unit))

    data = {**growth.behind.data.model_dump(mode="json", by_alias=True), "continue": False}
    alone = {"start": None, "rewarm": None, "data": data}
    shared = {"evaluate_every": after(wanted.length / EVALUATIONS), "stop": None, "grow_at": None}
    full = {"schedule": {**constant, "steps": after(wanted.grow_at + wanted.length)}}
    small = {"schedule": constant, "grow_at": f"{float(100 * wanted.grow_at):.6g} %"}
    expansions = list(_expansions(growth))
    on = {"schedule": {**constant, "steps": after(wanted.length), "continue": True}, "data": {**data, "continue": True}}
    stages = [
        {**_keys(growth.behind), **alone, **shared, **full, "name": FULL},
        {**_keys(growth.before), **alone, **shared, **small, "name": BEFORE},
        *expansions,
        {**_keys(growth.behind), **shared, **on, "name": BEHIND, "start": expansions[-1]["name"]},
    ]
    beside = f"-pilot-{growth.name}-at-{float(100 * wanted.grow_at):.6g}"
    return _validated(config, {"name": config.name + beside, "stages": stages}, beside)


def _validated(config: Config, changes: dict[str, Any], beside: str) -> Config:
    folder = str(config.path.with_name(config.path.name + beside))
    content = config.model_dump(mode="json", by_alias=True) | changes | {"folder": folder}
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        raise UserError(f"its pilot cannot be trained: {explain(error, content, Config)}") from error


def _require_possible(config: Config, growth: Growth, wanted: Wanted) -> None:
    schedule, where = growth.behind.schedule, f"stages.{growth.behind.name}.schedule"
    if schedule.kind not in STABLE:
        raise UserError(
            f"{where}.kind: {schedule.kind} has no constant rate at which losses could mix; a pilot is for wsd"
        )
    if schedule.warmup.amount > wanted.grow_at * schedule.horizon.amount:
        raise UserError(f"--grow-at: that lies within the warm-up of {schedule.warmup}, where no rate is constant")
    first: TrainStage | None = growth.before
    while first is not None and first.start and (earlier := config.trained_before(first)) is not None:
        first = earlier
    if first is not None and first.start:
        raise UserError(
            f"stages.{first.name}.start: the run begins from a checkpoint, beside which there is no model of full size "
            "to compare with"
        )


def _expansions(growth: Growth) -> Iterator[dict[str, Any]]:
    """The expansions as a pilot has them, one behind the other."""
    source, several = BEFORE, len(growth.expansions) > 1
    for number, stage in enumerate(growth.expansions, 1):
        name = f"{GROWTH}-{number}" if several else GROWTH
        yield {**_keys(stage), "name": name, "source": source}
        source = name


def _keys(stage: TrainStage | ExpandStage) -> dict[str, Any]:
    return stage.model_dump(mode="json", by_alias=True)


def _constant(behind: TrainStage) -> dict[str, Any]:
    """The schedule of a stage without its decay. How far it is trained says no rate, so that a pilot may become
    longer."""
    kept = ("peak", "initial", "warmup", "horizon")
    return {"kind": "constant", **{key: value for key, value in _keys(behind)["schedule"].items() if key in kept}}


def mixing(config: Config, derived: Config, growth: Growth, within: float) -> Mixing:
    """What the pilot's records say."""
    reader = RecordReader()
    full, behind = (reader.stage(derived.path / name) for name in (FULL, BEHIND))
    begin = behind.training.schedule.get("begin", 0) if behind.training else 0
    found = points(full.evaluations, behind.evaluations, begin)
    horizon, decay = _planned(config, growth.behind)
    steps, losses = mixed_behind(found, within), [point.full for point in found]
    moved = bool(losses) and max(losses) > (1 + within) * min(losses)
    percent = None if steps is None else 100 * (horizon - decay - steps) // horizon
    latest = percent if percent is not None and percent > 0 else None
    return Mixing(
        within=within, points=found, steps=steps, moved=moved, horizon=horizon, decay=decay, latest_percent=latest
    )


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
    """The first step from which on no gap is larger than `within`, at two evaluations at least; None: there is none."""
    apart = [index for index, point in enumerate(found) if point.gap > within]
    first = apart[-1] + 1 if apart else 0
    return found[first].step if first + 1 < len(found) else None


def _planned(config: Config, behind: TrainStage) -> tuple[int, int]:
    """Steps of the large model of the planned run's horizon, and of its decay."""
    from pipeline import models
    from pipeline.data import data_of
    from pipeline.training.length import pace

    data = data_of(config, behind)
    worth = pace(behind, models.trained(config.models[behind.model], data.facts), data)
    decay: Duration | None = getattr(behind.schedule, "decay", None)
    return behind.schedule.horizon.steps(worth), decay.steps(worth) if decay else 0
