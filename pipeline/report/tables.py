"""The parts of a report beside its comparisons: stages, training records, how expansions were verified, models."""

import math
from itertools import accumulate
from typing import Any

from pipeline.accounting.lineage import origins
from pipeline.accounting.recorded_runs import RecordedRun, RecordedStage, RecordReader
from pipeline.records.stage_facts import ExpandFacts
from pipeline.records.stage_records import TrainingRecord
from pipeline.report.content import Continuity, Event, Series, Stage, Start, TrainingSeries, Verdict

MEASURED: dict[str, Any] = {"tolerance": 0.0, "drift": [], "symmetry": {}, "loss": None, "stored": None}
"""What a verification may measure beside relative differences, and its value where it was not measured."""
POINTS = 600
"""Points of a drawn series: a figure 1000 pixels wide shows no more."""


def stage(stage: RecordedStage) -> Stage:
    """A stage with its facts, its curve and its thinned training record."""
    return Stage(
        stage=stage.name,
        kind=stage.kind,
        state=_state(stage),
        finished=stage.finished,
        step=stage.last_step,
        facts=stage.facts.model_dump(mode="json") if stage.facts else {},
        evaluations=stage.evaluations,
        training=training(stage.steps),
    )


def _state(stage: RecordedStage) -> str:
    """`finished`, or how far it has come."""
    if not stage.facts:
        return "not started"
    if stage.finished and stage.training and stage.training.reached:
        return f"finished at step {stage.training.end} of {stage.training.steps}: {stage.training.reached.words}"
    if stage.finished:
        return "finished"
    return f"at step {stage.last_step} of {stage.training.steps}" if stage.training else "running"


def warnings(stages: list[Stage]) -> list[str]:
    """Training that diverged and never came back, which a reader must know before trusting a curve."""
    return [
        f"Stage '{stage.stage}' broke down: its training loss is not a number at step {stage.training.diverged}."
        for stage in stages
        if stage.training.diverged is not None
    ]


def training(steps: list[TrainingRecord]) -> TrainingSeries:
    """The series that figures draw, from the records of training steps."""
    finite = [record for record in steps if math.isfinite(record.loss)]
    last = finite[-1].step if finite else -1
    diverged = next((record.step for record in steps if record.step > last), None)
    width = -(-len(finite) // (POINTS // 2)) if len(finite) > POINTS else 1
    losses = [(record.step, record.loss) for record in finite]
    rates = [(record.step, record.lr) for record in finite][::width]
    smoothed = smooth(losses, len(losses) // 50)[::width]
    return TrainingSeries(raw=extremes(losses, width), smooth=smoothed, rate=rates, diverged=diverged)


def extremes(pairs: Series, width: int) -> Series:
    """The lowest and the highest of every `width` pairs, in order of the step."""
    thinned: Series = []
    for start in range(0, len(pairs), width):
        chunk = pairs[start : start + width]
        ends = {min(chunk, key=lambda pair: pair[1]), max(chunk, key=lambda pair: pair[1])}
        thinned += [pair for pair in chunk if pair in ends]
    return thinned


def smooth(pairs: Series, width: int) -> Series:
    """Centred running mean over `width` pairs, narrower at the ends."""
    sums = list(accumulate((value for _, value in pairs), initial=0.0))
    reach = [min(width // 2, index, len(pairs) - 1 - index) for index in range(len(pairs))]
    means = [(sums[index + far + 1] - sums[index - far]) / (2 * far + 1) for index, far in enumerate(reach)]
    return [(step, mean) for (step, _), mean in zip(pairs, means, strict=True)]


def continuity(run: RecordedRun, reader: RecordReader) -> list[Continuity]:
    """Every expansion that has started: the source's last evaluation loss beside the step-0 evaluation loss of the
    stages trained from it, and what was verified."""
    started = [(stage, stage.facts) for stage in run.stages.values()]
    return [_continuity(run, stage, facts, reader) for stage, facts in started if isinstance(facts, ExpandFacts)]


def _continuity(run: RecordedRun, expansion: RecordedStage, facts: ExpandFacts, reader: RecordReader) -> Continuity:
    chain, unknown = origins(expansion, reader)
    before = chain[0].evaluations[-1].loss if chain and chain[0].evaluations else None
    measured = facts.verification or {}
    return Continuity(
        stage=expansion.name,
        source=chain[0].name if chain else unknown,
        source_loss=before,
        started=[
            _start(stage, before if chain and stage.block == chain[0].block else None)
            for stage in run.models
            if stage.facts and stage.facts.origin == expansion.name
        ],
        lossy=expansion.plan.get("lossy", []),
        verification=_verdicts(measured),
        method=facts.method,
        optimizer_state=facts.optimizer_state,
        lossless=facts.lossless,
        **{key: measured.get(key, nothing) for key, nothing in MEASURED.items()},
    )


def _start(stage: RecordedStage, before: float | None) -> Start:
    loss = next((point.loss for point in stage.evaluations if point.step == 0), None)
    difference = loss - before if loss is not None and before is not None else None
    return Start(stage=stage.name, loss=loss, difference=difference)


def _verdicts(verification: dict[str, Any]) -> list[Verdict]:
    verdicts, gates = [], verification.get("gates", {})
    for precision in [name for name in ("float64", "float32") if name in verification]:
        difference, gate = verification[precision], gates.get(precision)
        within = None if gate is None else difference <= gate
        verdicts.append(Verdict(precision=precision, difference=difference, gate=gate, within=within))
    return verdicts


def events(run: RecordedRun) -> list[Event]:
    """What was out of bounds, stage after stage."""
    return [
        Event(
            stage=stage.name,
            step=event.step,
            seen=event.words,
            action=event.action,
            back_to=event.back_to,
            data_step=event.data_step,
        )
        for stage in run.trained
        for event in stage.events
    ]


def models(run: RecordedRun) -> list[dict[str, Any]]:
    """The sizes of every model that was trained or grown, each once."""
    by_name: dict[str, dict[str, Any]] = {}
    for facts in (stage.facts for stage in run.stages.values() if stage.facts):
        sizes = {"family": facts.family, **facts.sizes, "parameters": facts.parameters}
        by_name.setdefault(facts.model, {"model": facts.model, **sizes})
    return list(by_name.values())
