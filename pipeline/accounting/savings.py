"""What an expansion saved: training FLOPs until a target is reached and kept, from scratch and expanded.

The published comparison counts training FLOPs (forward, backward, recomputation) of the expanded model alone, and of
fitting its growth where that was learned: *given* the small model. *All-in* adds the whole training of every model it
was grown from.
"""

from pipeline.accounting import baselines
from pipeline.accounting.baselines import Rule, facts_of
from pipeline.accounting.crossing import Metric, Reach, best, measured, reach
from pipeline.accounting.lineage import Ancestor
from pipeline.accounting.recorded_runs import Content, Evaluation, RecordedRun, RecordedStage, RecordReader
from pipeline.accounting.ways import Way, joined, way

WORDS: dict[Metric, str] = {"loss": "evaluation loss", "top1": "top-1 accuracy"}
STOPS: dict[Metric, str] = {"loss": "eval_loss", "top1": "top1"}
"""What a stage's `stop` calls them."""


class Baseline(Content):
    """The stage from scratch. run: its title, None for the run that is compared."""

    run: str | None
    stage: str


class Target(Content):
    """The value of the metric that the costs are compared at, and where it comes from."""

    metric: Metric
    value: float
    meaning: str


class Expansion(Content):
    """How the stage was grown: by the last expansion before it. fit_flops: what fitting learned methods has cost, in it
    and in those before it that no training follows."""

    stage: str
    method: str | None
    lossless: bool | None
    fit_flops: int = 0


class SourceStage(Content):
    stage: str
    flops: int


class Source(Content):
    """The training before the expansion, oldest first. flops: its sum; None where it is not recorded, `unknown` says of
    which checkpoint."""

    stages: list[SourceStage]
    flops: int | None
    unknown: str | None


class Given(Reach):
    saving_percent: float | None


class AllIn(Content):
    flops: int | None
    saving_percent: float | None


class SourceCurve(Content):
    stage: str
    points: list[Evaluation]


class Curves(Content):
    """What a figure draws. A source's curve starts where the one before it ended."""

    scratch: list[Evaluation]
    expanded: list[Evaluation]
    sources: list[SourceCurve]


class Savings(Content):
    """One expanded stage against training the same model from scratch. chain: the stages that share one schedule with
    it, oldest first, itself included; none of them is of use by itself, and what is given lies before them. Empty of a
    stage with a schedule of its own."""

    stage: str
    chain: list[str] = []
    model: str
    baseline: Baseline
    target: Target
    expansion: Expansion | None
    source: Source
    scratch: Reach
    given: Given
    all_in: AllIn
    curves: Curves


def compare_run(
    run: RecordedRun, places: list[RecordedRun], reader: RecordReader, rule: Rule
) -> tuple[list[Savings], list[str]]:
    """The comparisons of a run, and sentences that say why something could not be compared, or not so well.

    Compared is what was grown, or began from a checkpoint outside any run. A baseline is looked for in the run itself,
    then in `places`, other runs on the same data.
    """
    comparisons, remarks, used = [], dict[str, None](), set()
    for stage in run.models:
        found = way(stage, reader)
        if found.unknown is None and not found.growths:
            continue
        used |= {part.stage.path.resolve() for part in [*found.own, *found.sources, *found.growths] if part.stage}
        if not measured(stage.evaluations, rule.metric):
            remarks[_not_evaluated(stage, rule.metric)] = None
            continue
        baseline, said = baselines.choose(run, stage, places, rule)
        if baseline is not None:
            comparisons.append(_compare(run, found, *baseline, rule))
            said += baselines.remarks(stage, baseline[1], rule.metric)
        remarks |= dict.fromkeys(said)
    expansions = [stage for stage in run.stages.values() if stage.kind == "expand"]
    unused = [
        f"Expansion '{stage.name}' is not compared: no training stage has started from it yet."
        for stage in expansions
        if stage.path.resolve() not in used
    ]
    if not expansions and not comparisons and not remarks:
        unused.append("Nothing is compared: the run has no expansion.")
    return comparisons, [*remarks, *unused]


def _not_evaluated(stage: RecordedStage, metric: Metric) -> str:
    what = "evaluation" if metric == "loss" else "accuracy"
    return f"Stage '{stage.name}' is not compared: it has no {what} yet."


def _compare(run: RecordedRun, found: Way, place: RecordedRun, baseline: RecordedStage, rule: Rule) -> Savings:
    stage, expanded = found.stage, found.evaluations
    target, kept = _target(stage, baseline, rule), rule.kept
    curves = [] if found.unknown else _curves(found.sources, stage.block)
    scratch, given = (
        reach(points, target.value, rule.metric, kept=kept) for points in (baseline.evaluations, expanded)
    )
    listed = [SourceStage(stage=source.name, flops=source.training_flops or 0) for source in found.sources]
    cost = found.source_flops
    total = None if given.flops is None or cost is None else given.flops + cost
    return Savings(
        stage=stage.name,
        chain=found.in_one_run,
        model=facts_of(stage).model,
        baseline=Baseline(run=None if place is run else place.title, stage=baseline.name),
        target=target,
        expansion=_expansion(found.growths) if found.growths else None,
        source=Source(stages=listed, flops=cost, unknown=found.unknown),
        scratch=scratch,
        given=Given(**dict(given), saving_percent=saving(given.flops, scratch.flops)),
        all_in=AllIn(flops=total, saving_percent=saving(total, scratch.flops)),
        curves=Curves(scratch=baseline.evaluations, expanded=expanded, sources=curves),
    )


def _expansion(growths: list[Ancestor]) -> Expansion:
    """growths: expansions that follow each other without training between them, the last one first."""
    last, fits = growths[0], sum(growth.training_flops or 0 for growth in growths)
    return Expansion(stage=last.name, method=last.method, lossless=last.lossless, fit_flops=fits)


def _curves(sources: list[Ancestor], block: int | None) -> list[SourceCurve]:
    return [
        SourceCurve(stage=source.name, points=joined(sources[: index + 1], block)[-len(source.evaluations) :])
        for index, source in enumerate(sources)
        if source.evaluations and source.block == block
    ]


def _target(stage: RecordedStage, baseline: RecordedStage, rule: Rule) -> Target:
    metric, reached = rule.metric, facts_of(stage).reached
    if isinstance(rule.target, float):
        return Target(metric=metric, value=rule.target, meaning="as given")
    if rule.target is None and reached and reached.measure == STOPS[metric]:
        return Target(metric=metric, value=reached.target, meaning=f"at which '{stage.name}' was to stop")
    known, words, name = measured(baseline.evaluations, metric), WORDS[metric], baseline.name
    if rule.target == "lowest":
        point = best(baseline.evaluations, metric)
        value = next(found for each, found in known if each is point)
        return Target(metric=metric, value=value, meaning=f"the best {words} of '{name}', at step {point.step}")
    (_, value), where = known[-1], f"step {known[-1][0].step} of {facts_of(baseline).steps}"
    if baseline.finished:
        return Target(metric=metric, value=value, meaning=f"the final {words} of '{name}'")
    meaning = f"the latest {words} of '{name}', which is unfinished ({where})"
    return Target(metric=metric, value=value, meaning=meaning)


def saving(cost: int | None, scratch: int | None) -> float | None:
    """Per cent of `scratch` saved; negative: it cost more. None where either is unknown, or nothing was to be saved."""
    return 100 * (scratch - cost) / scratch if cost is not None and scratch else None
