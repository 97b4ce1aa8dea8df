"""What an expansion saved: training FLOPs to a target loss, from scratch and expanded.

The published comparison counts training FLOPs (forward, backward, recomputation) of the expanded model alone, and of
fitting its growth where that was learned: *given* the small model. *All-in* adds the whole training of every model it
was grown from.
"""

from pipeline.accounting.lineage import Ancestor, origins
from pipeline.accounting.recorded_runs import Content, Evaluation, RecordedRun, RecordedStage, RecordReader
from pipeline.records.stage_facts import TrainFacts


class Baseline(Content):
    """The stage from scratch. run: its title, None for the run that is compared."""

    run: str | None
    stage: str


class Target(Content):
    """The loss that the costs are compared at, in nats, and where it comes from."""

    loss: float
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


class Reach(Content):
    """Training FLOPs at which a curve met the target (None: it did not), its lowest evaluation and its last loss."""

    flops: int | None
    lowest: Evaluation
    last: float


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
    run: RecordedRun, places: list[RecordedRun], reader: RecordReader, target: float | None
) -> tuple[list[Savings], list[str]]:
    """The comparisons of a run, and sentences that say why something could not be compared.

    Compared is what was grown, or began from a checkpoint outside any run. A baseline is looked for in the run itself,
    then in `places`, other runs on the same data. target: a loss; None: that at which a stage was to stop, where that
    has ended it, else the baseline's own final evaluation loss.
    """
    comparisons, remarks, used = [], [], set()
    for stage in run.models:
        chain, unknown = origins(stage, reader)
        if unknown is None and not any(ancestor.kind == "expand" for ancestor in chain):
            continue
        used |= {ancestor.stage.path.resolve() for ancestor in chain if ancestor.stage}
        baseline = _baseline(run, stage, places)
        if not stage.evaluations:
            remarks.append(f"Stage '{stage.name}' is not compared: it has no evaluation yet.")
        elif baseline is None:
            remarks.append(_no_baseline(stage))
        else:
            comparisons.append(_compare(run, stage, chain, unknown, *baseline, target))
    expansions = [stage for stage in run.stages.values() if stage.kind == "expand"]
    remarks += [
        f"Expansion '{stage.name}' is not compared: no training stage has started from it yet."
        for stage in expansions
        if stage.path.resolve() not in used
    ]
    if not expansions and not comparisons and not remarks:
        remarks.append("Nothing is compared: the run has no expansion.")
    return comparisons, remarks


def _no_baseline(stage: RecordedStage) -> str:
    blocks = f" in blocks of {stage.block} tokens" if stage.block else ""
    return (
        f"Stage '{stage.name}' is not compared: no stage that trains model '{_facts(stage).model}' from scratch has "
        f"been evaluated{blocks}; train one without 'start', or add its run to the report."
    )


def _baseline(
    run: RecordedRun, stage: RecordedStage, places: list[RecordedRun]
) -> tuple[RecordedRun, RecordedStage] | None:
    """The evaluated training stage of the same model that began from scratch, in blocks of the same length."""
    for place in [run, *(place for place in places if place is not run and place.data_config == run.data_config)]:
        for other in place.models:
            same = _model(other) == _model(stage) and other.block == stage.block
            if same and _facts(other).origin is None and other.evaluations:
                return place, other
    return None


def _facts(stage: RecordedStage) -> TrainFacts:
    """The facts of a training stage that has started."""
    assert stage.training is not None
    return stage.training


def _model(stage: RecordedStage) -> tuple[str, str, dict[str, int]]:
    """What must be the same where two stages train the same model."""
    facts = _facts(stage)
    return facts.model, facts.family, facts.sizes


def _compare(
    run: RecordedRun,
    stage: RecordedStage,
    chain: list[Ancestor],
    unknown: str | None,
    place: RecordedRun,
    baseline: RecordedStage,
    target: float | None,
) -> Savings:
    grown = next((index for index, ancestor in enumerate(chain) if ancestor.kind == "expand"), len(chain))
    growths, behind = _growths(chain[grown:]), _behind(stage, chain, grown)
    sources = [ancestor for ancestor in reversed(chain[behind:]) if ancestor.trains]
    whole_stage = Ancestor(stage.path, stage, {}, {}, None)
    expanded = joined([*reversed(chain[:behind]), whole_stage], stage.block)
    loss, meaning = _target(stage, baseline, target)
    curves = [] if unknown else _curves(sources, stage.block)
    scratch, given = reach(baseline.evaluations, loss), reach(expanded, loss)
    listed = [SourceStage(stage=source.name, flops=source.training_flops or 0) for source in sources]
    cost = None if unknown else sum(source.flops for source in listed)
    total = None if given.flops is None or cost is None else given.flops + cost
    return Savings(
        stage=stage.name,
        chain=_in_one_run(stage, chain[:behind]),
        model=_facts(stage).model,
        baseline=Baseline(run=None if place is run else place.title, stage=baseline.name),
        target=Target(loss=loss, meaning=meaning),
        expansion=_expansion(growths) if growths else None,
        source=Source(stages=listed, flops=cost, unknown=unknown),
        scratch=scratch,
        given=Given(**dict(given), saving_percent=saving(given.flops, scratch.flops)),
        all_in=AllIn(flops=total, saving_percent=saving(total, scratch.flops)),
        curves=Curves(scratch=baseline.evaluations, expanded=expanded, sources=curves),
    )


def _growths(chain: list[Ancestor]) -> list[Ancestor]:
    """The expansions at the head of a chain of ancestors."""
    trained = next((place for place, ancestor in enumerate(chain) if ancestor.kind == "train"), len(chain))
    return chain[:trained]


def _behind(stage: RecordedStage, chain: list[Ancestor], grown: int) -> int:
    """Where in a chain of ancestors, nearest first, the source stands: the first training behind the last growth that
    is no part of the same run."""
    later: RecordedStage | None = stage
    for place, ancestor in enumerate(chain):
        if ancestor.kind == "train":
            if place > grown and not _continues(later):
                return place
            later = ancestor.stage
    return len(chain)


def _in_one_run(stage: RecordedStage, chain: list[Ancestor]) -> list[str]:
    """The names of the trainings that share one schedule with a stage, oldest first; empty where it has its own."""
    if not _continues(stage):
        return []
    return [*(ancestor.name for ancestor in reversed(chain) if ancestor.kind == "train"), stage.name]


def _continues(stage: RecordedStage | None) -> bool:
    """Whether its schedule goes on with that of the training before it."""
    facts = stage.training if stage else None
    schedule = facts.fingerprint.get("stage", {}).get("schedule", {}) if facts else {}
    return bool(schedule.get("continue"))


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


def _target(stage: RecordedStage, baseline: RecordedStage, given: float | None) -> tuple[float, str]:
    """The loss to compare at, and what it is: where nobody gives one, that at which the stage was to stop, else the
    last one of the baseline."""
    reached, last = _facts(stage).reached, baseline.evaluations[-1]
    if given is not None:
        return given, "as given"
    if reached and reached.measure == "eval_loss":
        return reached.target, f"at which '{stage.name}' was to stop"
    if baseline.finished:
        return last.loss, f"the final evaluation loss of '{baseline.name}'"
    where = f"step {last.step} of {_facts(baseline).steps}"
    return last.loss, f"the latest evaluation loss of '{baseline.name}', which is unfinished ({where})"


def joined(parts: list[Ancestor], block: int | None) -> list[Evaluation]:
    """The evaluations of stages that follow each other, the cost of each added to the next. block: of the evaluations
    that are comparable; those in others are left out."""
    points, offset = [], 0
    for part in parts:
        own = part.evaluations if part.block == block else []
        points += [point.model_copy(update={"flops": point.flops + offset}) for point in own]
        offset += part.training_flops or 0
    return points


def reach(points: list[Evaluation], target: float) -> Reach:
    """Whether and where a curve reaches `target`."""
    return Reach(flops=crossing(points, target), lowest=min(points, key=lambda point: point.loss), last=points[-1].loss)


def crossing(points: list[Evaluation], target: float) -> int | None:
    """FLOPs at which the loss first reaches `target`, linear between two evaluations; None: not reached."""
    before: Evaluation | None = None
    for point in points:
        if point.loss <= target:
            if before is None or before.loss == point.loss:
                return point.flops
            share = (before.loss - target) / (before.loss - point.loss)
            return round(before.flops + share * (point.flops - before.flops))
        before = point
    return None


def saving(cost: int | None, scratch: int | None) -> float | None:
    """Per cent of `scratch` saved; negative: it cost more. None where either is unknown, or nothing was to be saved."""
    return 100 * (scratch - cost) / scratch if cost is not None and scratch else None
