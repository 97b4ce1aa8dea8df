"""Which stage from scratch a grown one is compared with, and whether the two may be compared."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.accounting.crossing import Metric, best, measured, value
from pipeline.accounting.recorded_runs import RecordedRun, RecordedStage
from pipeline.config.data import ImageData, TextData
from pipeline.errors import UserError, nearest
from pipeline.records.stage_facts import TrainFacts

MEANT = 0.01
"""A baseline whose last evaluation is worse than its best by a larger share is not at its best."""
SETTINGS = ("batch", "seed", "precision", "gradient_sums", "matmul_precision", "optimizer")
"""Of a training, what two that are compared should share."""


@dataclass(frozen=True)
class Rule:
    """How runs are compared. target: a value of the metric; final: that which the baseline ends with; lowest: its best,
    as if it had been stopped there; None: as a stage was to stop where that has ended it, else final. baseline: the
    name of a stage; None: as the run's config says, else the best."""

    target: float | Literal["final", "lowest"] | None = None
    baseline: str | None = None
    metric: Metric = "loss"

    @property
    def kept(self) -> bool:
        """Whether a target has to be kept: not one that is left at once by whom it was taken from."""
        return self.target != "lowest"

    def require_possible(self) -> None:
        """Raises UserError for a target that no run can reach."""
        if isinstance(self.target, float) and not (math.isfinite(self.target) and self.target > 0):
            raise UserError(
                f"--target {self.target}: a target is an evaluation loss above 0 such as 3.5, 'final' or 'lowest'"
            )
        if isinstance(self.target, float) and self.metric == "top1" and self.target > 1:
            raise UserError(f"--target {self.target}: of top1 it is a share from 0 to 1, such as 0.75")


Candidate = tuple[RecordedRun, RecordedStage]
"""A stage from scratch, and the run that it is of."""


def choose(
    run: RecordedRun, stage: RecordedStage, places: list[RecordedRun], rule: Rule
) -> tuple[Candidate | None, list[str]]:
    """The baseline of a stage, and sentences that say what a reader must know of the choice; None with the reason."""
    candidates = _candidates(run, stage, places, rule.metric)
    name = rule.baseline or run.baseline
    if name is not None:
        named = [each for each in candidates if each[1].name == name]
        return (named[0], []) if named else (None, [_not_the_named(stage, name)])
    if not candidates:
        return None, [_none(stage, rule.metric)]
    order = 1 if rule.metric == "loss" else -1
    ranked = sorted(candidates, key=lambda each: order * _last(each[1], rule.metric))
    return ranked[0], [_others(run, stage, ranked, rule.metric)] if len(ranked) > 1 else []


def require_known(runs: list[RecordedRun], name: str | None) -> None:
    """Raises UserError where no run has a training called so."""
    names = list(dict.fromkeys(stage.name for run in runs for stage in run.models))
    if name is not None and name not in names:
        raise UserError(f"--baseline {name}: no training is called so{nearest(name, names)}")


def _candidates(run: RecordedRun, stage: RecordedStage, places: list[RecordedRun], metric: Metric) -> list[Candidate]:
    """Evaluated stages that trained the same model from scratch, in blocks of the same length, on the same evaluation
    set under the same masks: of the run itself, and of other runs on the same data."""
    others = [place for place in places if place is not run and _same_evaluation(place, run)]
    return [(place, other) for place in [run, *others] for other in place.models if _comparable(other, stage, metric)]


def _same_evaluation(place: RecordedRun, run: RecordedRun) -> bool:
    kept = ("masking", "evaluation")
    same = _with_defaults(place.data_config) == _with_defaults(run.data_config)
    return same and all(place.data.get(key) == run.data.get(key) for key in kept)


def _with_defaults(data: dict[str, Any]) -> dict[str, Any]:
    """A config's section on data, a key that is younger than the run with its default."""
    kind = TextData if data.get("kind") == "text" else ImageData
    defaults = {key: field.default for key, field in kind.model_fields.items() if not field.is_required()}
    return {key: value for key, value in {**defaults, **data}.items() if key != "workers"}


def _comparable(other: RecordedStage, stage: RecordedStage, metric: Metric) -> bool:
    same = _model(other) == _model(stage) and other.block == stage.block
    return same and facts_of(other).origin is None and bool(measured(other.evaluations, metric))


def facts_of(stage: RecordedStage) -> TrainFacts:
    """The facts of a training stage that has started."""
    assert stage.training is not None
    return stage.training


def _model(stage: RecordedStage) -> tuple[str, str, dict[str, int]]:
    """What must be the same where two stages train the same model."""
    facts = facts_of(stage)
    return facts.model, facts.family, facts.sizes


def _last(stage: RecordedStage, metric: Metric) -> float:
    return measured(stage.evaluations, metric)[-1][1]


def _not_the_named(stage: RecordedStage, name: str) -> str:
    return (
        f"Stage '{stage.name}' is not compared: '{name}', the baseline, does not train model "
        f"'{facts_of(stage).model}' from scratch on the same data, or has not been evaluated."
    )


def _none(stage: RecordedStage, metric: Metric) -> str:
    blocks = f" in blocks of {stage.block} tokens" if stage.block else ""
    by = " by its accuracy" if metric == "top1" else ""
    return (
        f"Stage '{stage.name}' is not compared: no stage that trains model '{facts_of(stage).model}' from scratch has "
        f"been evaluated{blocks}{by}; train one without 'start', or add its run to the report."
    )


def _others(run: RecordedRun, stage: RecordedStage, ranked: list[Candidate], metric: Metric) -> str:
    (place, first), *others = ranked
    listed = ", ".join(f"{_named(run, *each)} ({_last(each[1], metric):.4f})" for each in others)
    return (
        f"Baseline of '{stage.name}': {_named(run, place, first)}, which ends best ({_last(first, metric):.4f}); the "
        f"others: {listed}. Name another with --baseline, or 'baseline' in the config."
    )


def _named(run: RecordedRun, place: RecordedRun, stage: RecordedStage) -> str:
    return f"'{stage.name}'" if place is run else f"'{stage.name}' of {place.title}"


def remarks(stage: RecordedStage, baseline: RecordedStage, metric: Metric) -> Iterator[str]:
    """What makes a comparison worth less than it seems."""
    if unlike := list(_unlike(stage, baseline)):
        yield f"'{stage.name}' and its baseline '{baseline.name}' differ in more than their start: {'; '.join(unlike)}."
    facts = facts_of(baseline)
    if baseline.finished and not decayed(facts):
        yield (
            f"The learning rate of '{baseline.name}' has not decayed to its end, so that its loss would still fall: "
            "savings against it are worth little."
        )
    top = best(baseline.evaluations, metric)
    last, peak = _last(baseline, metric), value(top, metric) or 0.0
    if abs(last - peak) > MEANT * abs(peak):
        yield (
            f"'{baseline.name}' ends at {last:.4f}, its best is {peak:.4f} at step {top.step}: it has become worse "
            "(overfitting?), and its final value is easily reached (lemon report --target lowest compares at its best)."
        )


def _unlike(stage: RecordedStage, baseline: RecordedStage) -> Iterator[str]:
    own, other = (_flat(facts_of(each).settings.model_dump(include=set(SETTINGS))) for each in (stage, baseline))
    for key in {**own, **other}:
        if own.get(key) != other.get(key):
            yield f"{key} {own.get(key)}, not {other.get(key)}"


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, held in content.items():
        flat |= _flat(held, f"{prefix}{key}.") if isinstance(held, dict) else {prefix + key: held}
    return flat


def decayed(facts: TrainFacts) -> bool:
    """Whether a finished stage has come to the end of its schedule."""
    horizon = facts.schedule.get("horizon") or facts.steps
    return facts.schedule.get("kind") != "constant" and facts.schedule.get("begin", 0) + facts.end >= horizon
