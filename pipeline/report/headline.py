"""The result of a comparison in words: for the page and for the terminal."""

from dataclasses import dataclass

from pipeline.accounting.crossing import Reach, value
from pipeline.accounting.savings import WORDS, Savings, Target
from pipeline.accounting.wall_time import WallTime
from pipeline.report.content import Event
from pipeline.report.formatting import decimal, duration, flops, percent, saving


@dataclass(frozen=True)
class Bar:
    """One way to the target. parts: what was trained (`scratch`, `fit`, `expanded`, `source`) and what that cost in
    FLOPs, None where the target was not reached. cost and verdict are the words for it."""

    name: str
    note: str
    parts: tuple[tuple[str, int | None], ...]
    cost: str
    verdict: str | None = None

    @property
    def total(self) -> int:
        return sum(cost or 0 for _, cost in self.parts)


def statement(one: Savings) -> str:
    """One sentence: what growing saved, given the small model and all-in."""
    given, aim, source = one.given, one.target, one.source
    if given.flops is None:
        return f"'{one.stage}' has not reached the target{' for good' * given.lost}: {_missed(given, aim)}."
    if one.scratch.flops is None:
        missed = f"training from scratch has not{' kept it' * one.scratch.lost}"
        return f"'{one.stage}' reached the target, {missed}: {_missed(one.scratch, aim)}."
    if given.saving_percent is None:
        return "The target is reached before any training: there is nothing to save."
    if one.chain and not source.stages and source.unknown is None:
        stages = " and ".join(f"'{name}'" for name in one.chain[:-1])
        return f"The run that ends as '{one.stage}', {stages} counted, {_against_scratch(given.saving_percent)}."
    small = f"'{source.stages[-1].stage if source.stages else source.unknown}'"
    start = f"Given {small}, '{one.stage}' {_against_scratch(given.saving_percent)}."
    if given.flops == 0:
        start = f"{small} has reached the target already: as '{one.stage}' begins, nothing is left to train."
    if one.all_in.flops is None:
        return f"{start} All-in is not known: the training of '{source.unknown}' is not recorded."
    behind = " and ".join(f"'{stage.stage}'" for stage in source.stages)
    return f"{start} All-in, with the training of {behind} added, it {saving(one.all_in.saving_percent)}."


def _against_scratch(percent: float) -> str:
    """`saves 49.6 % against training from scratch`."""
    words = saving(percent)
    return f"{words} {'against' if percent >= 0.05 else 'as' if percent > -0.05 else 'than'} training from scratch"


def _missed(place: Reach, aim: Target) -> str:
    """How close to its target a curve came that did not reach it, or how it ended behind that."""
    best, words = place.best, "lowest loss" if aim.metric == "loss" else "highest top-1 accuracy"
    came = f"{words} {decimal(value(best, aim.metric))} (step {best.step}, {flops(best.flops)})"
    ended = f", at the end {decimal(place.last)}" if place.lost else ""
    return f"{came}{ended}, target {decimal(aim.value)}"


def target(one: Savings) -> str:
    """What is compared: FLOPs until which value is reached and kept."""
    aim = one.target
    return f"Training FLOPs until the {WORDS[aim.metric]} is {decimal(aim.value)} for good ({aim.meaning})."


def growth(one: Savings) -> str | None:
    """By which method it was grown, and whether that kept the function; None where the method is not known."""
    if one.expansion is None or one.expansion.method is None:
        return None
    kept = "lossless" if one.expansion.lossless else "lossy, as declared"
    return f"Grown by method '{one.expansion.method}', {kept}."


def bars(one: Savings) -> list[Bar]:
    """From scratch, given the small model, all-in; of what grew within one run from nothing that run."""
    baseline, compared = one.baseline, one.scratch.flops is not None and one.given.flops is not None
    place = f"stage {baseline.stage}" + (f" of {baseline.run}" if baseline.run else "")
    verdicts = [saving(way.saving_percent) if compared else None for way in (one.given, one.all_in)]
    own, aim = _own(one), one.target
    scratch = Bar("From scratch", place, (("scratch", one.scratch.flops),), _cost(one.scratch, aim))
    fit = one.expansion.fit_flops if one.expansion else 0
    trained = " and ".join(one.chain or [one.stage])
    alone = f"fit of its growth ({flops(fit)}), training of {trained}" if fit else f"training of {trained} alone"
    given = Bar("Given the small model", alone, own, _cost(one.given, aim), verdicts[0])
    source, total = one.source, one.all_in.flops
    if one.chain and not source.stages and source.unknown is None:
        return [scratch, Bar("Whole run", alone.removesuffix(" alone"), own, given.cost, given.verdict)]
    if source.flops is None:
        reason = f"not known: '{source.unknown}' has no record"
        return [scratch, given, Bar("All-in", "its source's training added", (), reason)]
    note = f"training of {' and '.join(stage.stage for stage in source.stages)} added, {flops(source.flops)}"
    if total is None:
        return [scratch, given, Bar("All-in", note, (), "not reached")]
    return [scratch, given, Bar("All-in", note, (("source", source.flops), *own), flops(total), verdicts[1])]


def _own(one: Savings) -> tuple[tuple[str, int | None], ...]:
    """What was spent behind the source: on fitting the growth, on training its result."""
    fit, total = one.expansion.fit_flops if one.expansion else 0, one.given.flops
    return (("fit", fit), ("expanded", total - fit)) if fit and total is not None else (("expanded", total),)


def _cost(place: Reach, aim: Target) -> str:
    reached = "not kept" if place.lost else "not reached"
    return f"{reached}: {_missed(place, aim)}" if place.flops is None else flops(place.flops)


def time_spent(one: WallTime, events: list[Event]) -> str:
    """How long a stage took, what share of that was training that counts, and what was out of bounds meanwhile."""
    starts = "1 start" if one.starts == 1 else f"{one.starts} starts"
    seen = sum(event.stage == one.stage for event in events)
    unstable = f"; loss or gradient norm out of bounds {'once' if seen == 1 else f'{seen} times'}" if seen else ""
    return f"'{one.stage}' took {duration(one.seconds)} in {starts}, goodput {percent(one.goodput)}{unstable}"
