"""The content of report.json, a public format: everything that the page shows, FLOPs as exact integers."""

from typing import Any, Literal

from pipeline.accounting.recorded_runs import Content, Evaluation
from pipeline.accounting.savings import Savings
from pipeline.accounting.speed import Speed
from pipeline.accounting.totals import Totals
from pipeline.accounting.wall_time import WallTime

Series = list[tuple[int, float]]
"""Pairs of step and value."""


class TrainingSeries(Content):
    """Thinned series. raw keeps the lowest and highest loss of each bin, so that a spike survives; smooth is a centred
    mean over 2 % of the record; rate is the learning rate. diverged: the step from which on no loss is a number."""

    raw: Series
    smooth: Series
    rate: Series
    diverged: int | None


class Stage(Content):
    """A stage of the config. state: `finished`, with what ended it before its schedule, or how far it has come; facts:
    its stage.json."""

    stage: str
    kind: str
    state: str
    finished: bool
    step: int
    facts: dict[str, Any]
    evaluations: list[Evaluation]
    training: TrainingSeries


class Start(Content):
    """The loss at step 0 of a stage trained from an expansion, and by how much it is above its source's last one."""

    stage: str
    loss: float | None
    difference: float | None


class Verdict(Content):
    """A relative difference of outputs and its gate."""

    precision: str
    difference: float
    gate: float | None
    within: bool | None


class Continuity(Content):
    """The method of an expansion, what it declared, and everything that its verification measured."""

    stage: str
    method: str | None
    optimizer_state: str | None
    source: str | None
    source_loss: float | None
    started: list[Start]
    lossless: bool | None
    lossy: list[str]
    verification: list[Verdict]
    tolerance: float
    drift: list[float]
    symmetry: dict[str, float]
    loss: list[float] | None
    stored: float | None


class Event(Content):
    """A loss or gradient norm out of bounds in the step that ends at `step`, and what was done. back_to: the step that
    a rewind went back to; data_step: the step of an undisturbed run whose samples came next."""

    stage: str
    step: int
    seen: str
    action: str
    back_to: int | None
    data_step: int | None


class Run(Content):
    """One run folder. unigram_entropy: the loss of a model that predicts only the tokens' frequencies, in nats."""

    title: str
    folder: str
    kind: str
    unigram_entropy: float | None
    unfinished: list[str]
    warnings: list[str]
    comparisons: list[Savings]
    remarks: list[str]
    stages: list[Stage]
    ledger: Totals
    continuity: list[Continuity]
    speed: list[Speed]
    wall_time: list[WallTime]
    events: list[Event]
    models: list[dict[str, Any]]


class Report(Content):
    """The whole report. command: what writes it again. Since format 2 every key is always there, null where nothing is
    known, and a stage's speed has the seconds of evaluation and saving. Keys are added (wall_time, events). Since
    format 3 a target has a metric and a value, and a curve its best evaluation, where both were losses (loss,
    lowest)."""

    format: Literal[3] = 3
    command: str
    runs: list[Run]
