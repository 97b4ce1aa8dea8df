"""From the runs of a study to its results."""

import math
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.accounting import savings as costs
from pipeline.accounting import totals
from pipeline.accounting.lineage import lineage
from pipeline.accounting.recorded_runs import RecordReader
from pipeline.accounting.totals import Amounts
from pipeline.errors import UserError
from pipeline.records.run_folder import read_json
from pipeline.studies import choice
from pipeline.studies.composed import Composed, of_seed, tuning
from pipeline.studies.curves import Curve, curve
from pipeline.studies.results import (
    ArmResult,
    AtTarget,
    EqualFlops,
    Role,
    Savings,
    SeedResult,
    Spent,
    StudyResults,
    Summary,
)
from pipeline.studies.running import PROTOCOL
from pipeline.studies.schema import Study
from pipeline.studies.statistics import sample
from pipeline.studies.trials import chosen, stages_of

TARGETS = 40
"""Points of a curve of savings against the target."""
EARLY = 0.15
"""Share of the baseline's FLOPs at which the easiest of these targets is reached."""

Curves = dict[str, dict[int, Curve]]
"""By arm and seed."""


def found(study: Study, config: Path) -> StudyResults:
    """What there is by now. config: the study's file, for the command. Raises UserError before the first evaluation of
    the baseline under any seed."""
    reader, tuned, choices = RecordReader(), tuning(study), choice.recorded(study)
    runs = [of_seed(study, seed, choices) for seed in study.seeds]
    curves = _curves(study, runs, reader)
    if not curves[study.baseline]:
        raise UserError(f"{study.path}: no evaluation of the baseline '{study.baseline}' yet; run the study first")
    trials = choice.judged(study, tuned) if tuned else {}
    spent_on = _trial_flops(study, tuned, reader)
    arms = [_arm(study, name, curves, trials, spent_on, choices) for name in _order(study)]
    spent = list(_spent([*([tuned] if tuned else []), *runs], reader))
    protocol = read_json(study.path / PROTOCOL)
    began = min(protocol["arms"].values())
    return StudyResults(
        name=study.name,
        question=study.question,
        command=shlex.join(["lemon", "study", str(config)]),
        rule=protocol["rule"],
        began=began,
        added={name: day for kind in ("arms", "seeds") for name, day in protocol[kind].items() if day > began},
        unfinished=list(_unfinished([*([tuned] if tuned else []), *runs], reader)),
        machine=_machine(study, runs, reader),
        arms=arms,
        spent=spent,
        whole=_sum(spent),
    )


def _order(study: Study) -> list[str]:
    """The baseline and its frontier first."""
    first = [study.baseline, *study.frontier]
    return [*first, *(arm for arm in study.arms if arm not in first)]


def _curves(study: Study, runs: Sequence[Composed], reader: RecordReader) -> Curves:
    curves: Curves = {arm: {} for arm in study.arms}
    for composed in runs:
        for trial in composed.trials:
            stage = reader.stage(composed.path / composed.ends[trial.label], "train")
            if stage.training and (own := curve(stage, reader, study.metric, study.smooth)):
                curves[trial.arm][composed.seed or 0] = own
    return curves


def _trial_flops(study: Study, tuned: Composed | None, reader: RecordReader) -> dict[str, int]:
    """Training FLOPs of all trials of each arm, what several of them share counted once."""
    if tuned is None:
        return {}
    spent: dict[str, int] = {}
    for arm in study.arms:
        like = study.arms[arm].like or arm
        ends = [tuned.path / tuned.ends[trial.label] for trial in tuned.trials if trial.arm == like]
        begun = [end for end in ends if (end / "stage.json").exists()]
        parts = {part.path.resolve(): part.training_flops or 0 for end in begun for part in lineage(end, reader)}
        spent[arm] = sum(parts.values())
    return spent


def _arm(
    study: Study,
    name: str,
    curves: Curves,
    trials: dict[str, list[choice.TrialResult]],
    spent_on: dict[str, int],
    choices: dict[str, dict[str, Any]],
) -> ArmResult:
    arm, compared = study.arms[name], chosen(study, name, choices)
    tried = spent_on.get(name, 0), spent_on.get(study.baseline, 0)
    seeds = [_seed(study, name, seed, curves, tried) for seed in sorted(curves[name]) if seed in curves[study.baseline]]
    equal = [one.equal.difference for one in seeds if one.equal]
    return ArmResult(
        name=name,
        about=arm.about,
        role=_role(study, name),
        stages=[str(stage["name"]) for stage in stages_of(study, compared)],
        settings=compared.settings,
        like=arm.like,
        trials=trials.get(name, []),
        trial_flops=tried[0],
        seeds=seeds,
        **{key: _summary(study, seeds, key) for key in Savings.model_fields},
        final=sample([one.final for one in seeds], study.confidence),
        equal=sample(equal, study.confidence),
        break_even=_break_even(seeds, curves[study.baseline], study),
        by_target=[] if name == study.baseline else list(_by_target(study, name, curves)),
    )


def _role(study: Study, name: str) -> Role:
    return "baseline" if name == study.baseline else "frontier" if name in study.frontier else "arm"


def _target(study: Study, baseline: Curve) -> float:
    return baseline.final if study.target == "final" else study.target


def _seed(study: Study, name: str, seed: int, curves: Curves, tried: tuple[int, int]) -> SeedResult:
    """tried: training FLOPs of all trials, of the arm and of the baseline."""
    own, baseline = curves[name][seed], curves[study.baseline][seed]
    target = _target(study, baseline)
    given, scratch = own.flops_at(target, study.metric), baseline.flops_at(target, study.metric)
    all_in = None if given is None else given + own.source_flops
    seconds = None if given is None else own.seconds_at(given) + own.source_seconds
    return SeedResult(
        seed=seed,
        finished=own.finished,
        final=own.final,
        target=target,
        flops=own.flops,
        source=own.source_flops,
        given=given,
        all_in=all_in,
        seconds=seconds,
        memory=own.memory,
        before=own.before,
        behind=own.behind,
        savings=Savings(
            given=costs.saving(given, scratch),
            all_in=costs.saving(all_in, scratch),
            tuned=None if all_in is None or scratch is None else costs.saving(all_in + tried[0], scratch + tried[1]),
            time=None if seconds is None or scratch is None else _less(seconds, baseline.seconds_at(scratch)),
        ),
        equal=_at_equal_flops(study, own, [curves[arm][seed] for arm in _scratch(study) if seed in curves[arm]]),
        curve=own.points,
    )


def _less(cost: float, scratch: float) -> float | None:
    return 100 * (scratch - cost) / scratch if scratch else None


def _scratch(study: Study) -> list[str]:
    return [study.baseline, *study.frontier]


def _at_equal_flops(study: Study, own: Curve, scratch: Sequence[Curve]) -> EqualFlops | None:
    """scratch: of the horizons that were trained to their end; linear in the logarithm of FLOPs between two of them."""
    ends = sorted((curve.flops, curve.final) for curve in scratch if curve.finished)
    cost = own.flops + own.source_flops
    if not own.finished or own in scratch or cost <= 0:
        return None
    value = _between([(math.log(flops), end) for flops, end in ends], math.log(cost))
    if value is None:
        return None
    logarithm = _between(sorted((end, math.log(flops)) for flops, end in ends), own.final)
    saving = None if logarithm is None else 100 * (1 - cost / math.exp(logarithm))
    return EqualFlops(value=value, difference=own.final - value, saving=saving)


def _between(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """Linear between two points, in rising order of x; None outside of all."""
    for (left, low), (right, high) in pairwise(points):
        if left <= x <= right and right > left:
            return low + (high - low) * (x - left) / (right - left)
    return None


def _summary(study: Study, seeds: Sequence[SeedResult], key: str) -> Summary:
    known = [value for one in seeds if (value := getattr(one.savings, key)) is not None]
    return Summary(of=len(seeds), reached=len(known), sample=sample(known, study.confidence))


def _break_even(seeds: Sequence[SeedResult], baseline: dict[int, Curve], study: Study) -> float | None:
    """source / (scratch - given), of the means over the seeds that reached the target."""
    known = [(one.source, one.given, baseline[one.seed].flops_at(one.target, study.metric)) for one in seeds]
    whole = [(source, given, scratch) for source, given, scratch in known if given is not None and scratch is not None]
    if not whole or not any(source for source, _, _ in whole):
        return None
    left = mean(scratch - given for _, given, scratch in whole)
    return mean(source for source, _, _ in whole) / left if left > 0 else None


def _by_target(study: Study, name: str, curves: Curves) -> Iterator[AtTarget]:
    """From an early value of the baseline's curves to their final one, where every seed reaches it."""
    scratch = curves[study.baseline]
    pairs = [(own, scratch[seed]) for seed, own in curves[name].items() if seed in scratch]
    if not pairs:
        return
    final = mean(curve.final for _, curve in pairs)
    early = mean(_value_at(curve, EARLY * curve.flops) for _, curve in pairs)
    for place in range(TARGETS + 1):
        target = early + (final - early) * place / TARGETS
        given, all_in = [], []
        for own, base in pairs:
            cost, of_scratch = own.flops_at(target, study.metric), base.flops_at(target, study.metric)
            given.append(costs.saving(cost, of_scratch))
            all_in.append(None if cost is None else costs.saving(cost + own.source_flops, of_scratch))
        known = [value for value in given if value is not None], [value for value in all_in if value is not None]
        if len(known[0]) == len(known[1]) == len(pairs):
            yield AtTarget(target=target, given=mean(known[0]), all_in=mean(known[1]))


def _value_at(curve: Curve, flops: float) -> float:
    return next((point.smoothed for point in curve.points if point.flops >= flops), curve.final)


def _spent(runs: Sequence[Composed], reader: RecordReader) -> Iterator[Spent]:
    for composed in runs:
        if (composed.path / "config.yaml").exists():
            (recorded,) = reader.runs([composed.path])
            both = totals.add_up(recorded.stages.values())
            yield Spent(run=composed.name, training=both.training, everything=both.everything)


def _sum(spent: Sequence[Spent]) -> Spent:
    def added(key: str) -> Amounts:
        parts = [getattr(one, key) for one in spent]
        return Amounts(**{unit: sum(getattr(part, unit) for part in parts) for unit in Amounts.model_fields})

    return Spent(run="all runs", training=added("training"), everything=added("everything"))


def _unfinished(runs: Sequence[Composed], reader: RecordReader) -> Iterator[str]:
    for composed in runs:
        for stage in composed.config.stages:
            if not reader.stage(composed.path / stage.name, stage.kind).finished:
                yield f"{composed.name}/{stage.name}"


def _machine(study: Study, runs: Sequence[Composed], reader: RecordReader) -> dict[str, str]:
    for composed in runs:
        facts = reader.stage(composed.path / composed.ends[study.baseline]).training
        if facts:
            return {"device": facts.device, "ranks": str(facts.settings.world_size), **facts.versions}
    return {}
