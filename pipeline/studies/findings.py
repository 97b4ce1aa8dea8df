"""From the runs of a study to its results."""

import math
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean

from pipeline.accounting import baselines, totals
from pipeline.accounting import savings as costs
from pipeline.accounting.lineage import lineage
from pipeline.accounting.recorded_runs import RecordReader
from pipeline.accounting.totals import Amounts
from pipeline.accounting.ways import way
from pipeline.errors import UserError
from pipeline.studies import choice, protocol, running
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
from pipeline.studies.schema import Settings, Study
from pipeline.studies.statistics import sample
from pipeline.studies.trials import chosen, stages_of

TARGETS = 40
"""Points of a curve of savings against the target."""
EARLY = 0.15
"""Share of the baseline's FLOPs at which the easiest of these targets is reached."""

Curves = dict[str, dict[int, Curve]]
"""By arm and seed."""


def found(study: Study, arguments: Sequence[str] = ()) -> StudyResults:
    """What there is by now. arguments: of the command, behind `lemon study`. Raises UserError before anything was
    measured."""
    reader, choices, held = RecordReader(), choice.recorded(study), protocol.of(study)
    tuned = running.tuned_run(study) if study.tuned else None
    runs = [of_seed(study, seed, running.first_trials(study) | choices) for seed in study.seeds]
    curves = _curves(study, runs, reader)
    trials = choice.judged(study, tuned) if tuned else {}
    if held is None or not (curves[study.baseline] or trials):
        raise UserError(
            f"{study.path}: nothing of the baseline '{study.baseline}' is measured yet; run the study first"
        )
    spent_on = _trial_flops(study, tuned, reader)
    own = [*([tuned] if tuned and study.tuned_in is None else []), *runs]
    spent = list(_spent(study.path, reader))
    return StudyResults(
        name=study.name,
        question=study.question,
        command=shlex.join(["lemon", "study", *arguments]),
        study=study.model_dump(mode="json"),
        rule=held.rule,
        began=held.began,
        added=protocol.added(study, held),
        dropped=protocol.dropped(study, held),
        unfinished=list(_unfinished(own, reader)),
        broken=running.broken_trials(study) if study.tuned else {},
        versions=_versions(study, runs, reader),
        arms=[_arm(study, name, curves, trials, spent_on, choices) for name in _order(study)],
        spent=spent,
        whole=_sum(spent),
    )


def _order(study: Study) -> list[str]:
    """The baseline and its frontier first."""
    return [*study.scratch, *(arm for arm in study.arms if arm not in study.scratch)]


def _curves(study: Study, runs: Sequence[Composed], reader: RecordReader) -> Curves:
    curves: Curves = {arm: {} for arm in study.arms}
    for composed in runs:
        for trial in composed.trials:
            stage = reader.stage(composed.path / composed.ends[trial.label], "train")
            if stage.training and (own := curve(stage, reader, study.metric, study.smooth)):
                curves[trial.arm][composed.seed or 0] = own
    return curves


def _trial_flops(study: Study, tuned: Composed | None, reader: RecordReader) -> dict[str, int]:
    """Training FLOPs of all trials of each arm, those that broke down too, what several of them share counted once."""
    whole = tuning(study)
    if tuned is None or whole is None:
        return {}
    spent: dict[str, int] = {}
    for arm in study.arms:
        like = study.arms[arm].like or arm
        ends = [whole.path / whole.ends[trial.label] for trial in whole.trials if trial.arm == like]
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
    choices: dict[str, Settings],
) -> ArmResult:
    arm, compared = study.arms[name], chosen(study, name, choices)
    tried = spent_on.get(name, 0), spent_on.get(study.baseline, 0)
    pairs = {seed: (own, curves[study.baseline].get(seed)) for seed, own in sorted(curves[name].items())}
    seeds = [_seed(study, seed, own, base, curves, tried) for seed, (own, base) in pairs.items() if base]
    first = next(iter(curves[name].values()), None)
    chain = way(first.stage, RecordReader()).in_one_run if first else []
    sources = [(one.before, one.target) for one in seeds if one.complete and one.before is not None and not chain]
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
        final=sample([one.final for one in seeds if one.complete], study.confidence),
        equal=sample([one.equal.difference for one in seeds if one.equal], study.confidence),
        source_final=sample([end for end, _ in sources], study.confidence),
        source_enough=sum(end <= target if study.metric == "loss" else end >= target for end, target in sources),
        break_even=_break_even([one for one in seeds if one.complete]),
        by_target=[] if name == study.baseline else list(_by_target(study, name, curves)),
        chain=chain,
        remarks=_remarks(study, [(own, base) for own, base in pairs.values() if base]),
        machines=sorted({machine for own in curves[name].values() for machine in own.machines}),
    )


def _remarks(study: Study, pairs: Sequence[tuple[Curve, Curve]]) -> list[str]:
    """What makes pairs of an arm and the baseline worth less, each sentence once. (Horizons of scratch are meant to
    differ in nothing that these tell.)"""
    said = [
        sentence
        for own, base in pairs
        if own.stage is not base.stage
        for sentence in baselines.remarks(own.stage, base.stage, study.metric)
    ]
    return list(dict.fromkeys(said))


def _role(study: Study, name: str) -> Role:
    if name == study.baseline:
        return "baseline"
    return "frontier" if name in study.frontier else "smaller" if name in study.smaller else "arm"


def _target(study: Study, baseline: Curve) -> float:
    return baseline.final if study.target == "final" else study.target


def _seed(study: Study, seed: int, own: Curve, baseline: Curve, curves: Curves, tried: tuple[int, int]) -> SeedResult:
    """tried: training FLOPs of all trials, of the arm and of the baseline."""
    target, complete = _target(study, baseline), own.finished and baseline.finished
    given, scratch = own.flops_at(target, study.metric), baseline.flops_at(target, study.metric)
    all_in = None if given is None or own.source_flops is None else given + own.source_flops
    seconds = None if given is None or own.unknown else own.seconds_at(given) + own.source_seconds
    frontier = [curves[arm][seed] for arm in study.scratch if seed in curves[arm]]
    time = _time(own, baseline, seconds, scratch)
    return SeedResult(
        seed=seed,
        complete=complete,
        final=own.final,
        target=target,
        flops=own.flops,
        source=own.source_flops,
        unknown=own.unknown,
        given=given,
        all_in=all_in,
        scratch=scratch,
        seconds=seconds,
        memory=own.memory,
        before=own.before,
        behind=own.behind,
        savings=_savings(given, all_in, scratch, tried, time) if complete else Savings(),
        equal=_at_equal_flops(own, frontier),
        curve=own.points,
    )


def _savings(
    given: int | None, all_in: int | None, scratch: int | None, tried: tuple[int, int], time: float | None
) -> Savings:
    tuned = None
    if all_in is not None and scratch is not None and all(tried):
        tuned = costs.saving(all_in + tried[0], scratch + tried[1])
    return Savings(given=costs.saving(given, scratch), all_in=costs.saving(all_in, scratch), tuned=tuned, time=time)


def _time(own: Curve, baseline: Curve, seconds: float | None, scratch: int | None) -> float | None:
    """Per cent of the baseline's seconds, where both were trained on the same machines."""
    if seconds is None or scratch is None or own.machines != baseline.machines or len(own.machines) > 1:
        return None
    spent = baseline.seconds_at(scratch)
    return 100 * (spent - seconds) / spent if spent else None


def _at_equal_flops(own: Curve, scratch: Sequence[Curve]) -> EqualFlops | None:
    """scratch: of the horizons, of which those count that were trained to the end of their schedule; linear in the
    logarithm of FLOPs between two of them."""
    ends = sorted((curve.flops, curve.final) for curve in scratch if curve.decayed)
    cost = own.all_flops
    if not own.decayed or own in scratch or not cost:
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
    complete = [one for one in seeds if one.complete]
    known = [value for one in complete if (value := getattr(one.savings, key)) is not None]
    return Summary(
        of=len(complete),
        reached=sum(one.given is not None for one in complete),
        scratch=sum(one.scratch is not None for one in complete),
        sample=sample(known, study.confidence),
    )


def _break_even(seeds: Sequence[SeedResult]) -> float | None:
    """source / (scratch - given), of the means over the seeds; None where one of them has not reached the target."""
    known = [
        (one.source, one.scratch - one.given)
        for one in seeds
        if one.source is not None and one.scratch is not None and one.given is not None
    ]
    if not known or len(known) < len(seeds) or not any(source for source, _ in known):
        return None
    left = mean(left for _, left in known)
    return mean(source for source, _ in known) / left if left > 0 else None


def _by_target(study: Study, name: str, curves: Curves) -> Iterator[AtTarget]:
    """From an early value of the baseline's curves to their final one, where every seed reaches it."""
    scratch = curves[study.baseline]
    both = [(own, scratch[seed]) for seed, own in curves[name].items() if seed in scratch]
    pairs = [(own, base) for own, base in both if own.finished and base.finished]
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
            whole = None if cost is None or own.source_flops is None else cost + own.source_flops
            all_in.append(costs.saving(whole, of_scratch))
        known = [value for value in given if value is not None], [value for value in all_in if value is not None]
        if len(known[0]) == len(known[1]) == len(pairs):
            yield AtTarget(target=target, given=mean(known[0]), all_in=mean(known[1]))


def _value_at(curve: Curve, flops: float) -> float:
    return next((point.smoothed for point in curve.points if point.flops >= flops), curve.final)


def _spent(folder: Path, reader: RecordReader) -> Iterator[Spent]:
    """Of every run of the study, and every stage in it, whether the study still has it or not."""
    for config in sorted(folder.glob("*/config.yaml"), key=_place):
        stages = [reader.stage(facts.parent) for facts in sorted(config.parent.glob("*/stage.json"))]
        both = totals.add_up(stages)
        yield Spent(run=config.parent.name, training=both.training, everything=both.everything)


def _place(config: Path) -> tuple[int, str]:
    """The tuning first, then the seeds by their numbers."""
    seed = config.parent.name.removeprefix("seed-")
    return (int(seed) if seed.isdecimal() else -1, config.parent.name)


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


def _versions(study: Study, runs: Sequence[Composed], reader: RecordReader) -> dict[str, str]:
    for composed in runs:
        if facts := reader.stage(composed.path / composed.ends[study.baseline]).training:
            return facts.versions
    return {}
