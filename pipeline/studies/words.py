"""The results of a study in words: for the page, the terminal and the table."""

from collections.abc import Iterator

from pipeline.report.formatting import MINUS, decimal, flops, signed
from pipeline.studies.results import ArmResult, SeedResult, StudyResults, Summary
from pipeline.studies.statistics import Sample


def percent(number: float | None) -> str:
    """`54.3 %`, `−3.1 %`."""
    return "–" if number is None else f"{number:.1f} %".replace("-", MINUS)


def interval(sample: Sample | None, *, next_one: bool = False) -> str:
    """`48.2 to 60.4 %`: of the mean, or of one further seed."""
    if sample is None or sample.low is None:
        return "–"
    low, high = (sample.next_low, sample.next_high) if next_one else (sample.low, sample.high)
    return f"{low:.1f} to {high:.1f} %".replace("-", MINUS)


def planned_later(results: StudyResults) -> Iterator[str]:
    """For each moment after the study had begun what was planned at it, as `lemon (seeds 1, 2): MOMENT`."""
    moments: dict[str, dict[str, list[str]]] = {}
    for pair, moment in results.added.items():
        arm, _, seed = pair.rpartition(" under seed ")
        moments.setdefault(moment, {}).setdefault(arm, []).append(seed)
    for moment, arms in moments.items():
        named = ", ".join(f"{arm} (seeds {', '.join(seeds)})" for arm, seeds in arms.items())
        yield f"{named}: {moment}"


def saved(summary: Summary) -> str:
    """`54.3 % (48.2 to 60.4)`: of the seeds that reached the target."""
    return "not reached" if summary.of and not summary.reached else _said(summary)


def statements(results: StudyResults) -> Iterator[str]:
    """A sentence for each arm that grew, the one that saves most all-in first; one for all that never got there; one
    for each smaller model that is no doubt about them."""
    grown = [arm for arm in results.arms if arm.role == "arm" and arm.given.of]
    for arm in sorted(grown, key=lambda arm: -(arm.all_in.sample.mean if arm.all_in.sample else float("-inf"))):
        if arm.given.reached:
            yield statement(arm)
    never = [f"'{arm.name}' (0 of {arm.given.of} seeds)" for arm in grown if not arm.given.reached]
    if never:
        yield f"Never reached the target: {', '.join(never)}."
    for arm in results.arms:
        if arm.role == "smaller" and arm.given.of and not cheaper_than(results, arm):
            yield without_growing(arm) + "."


def statement(arm: ArmResult) -> str:
    """What an arm that reached the target saved, by what is counted."""
    given = arm.given
    if given.sample is None:
        reached = f"{given.reached} of {given.of} seeds"
        return f"'{arm.name}' reached the target under {reached}, the baseline under none of them."
    parts = [f"{_said(given)} with all of its stages counted" if arm.chain else f"{_said(given)} given the small model"]
    if not arm.chain:
        parts.append(
            f"{_said(arm.all_in)} all-in" if arm.all_in.sample else f"an unknown share all-in ({_unknown(arm)})"
        )
    if arm.tuned.sample:
        parts.append(f"{_said(arm.tuned)} with all trials of both sides charged")
    unmet = given.of - given.scratch
    neither = f"; nor did the baseline under {unmet}" if unmet else ""
    return f"'{arm.name}' saves {', '.join(parts)}{_missed(given)}{neither}."


def without_growing(arm: ArmResult) -> str:
    """What a smaller model that was trained from scratch, and not grown, needs for the target."""
    given, begin = arm.given, f"A smaller model by itself, '{arm.name}',"
    if given.sample is None:
        scratch = ", the baseline under none of them" if given.reached else ""
        return f"{begin} reached the target under {given.reached} of {given.of} seeds{scratch}"
    return f"{begin} saves {_said(arm.all_in)} without any growth{_missed(given)}"


def cheaper_than(results: StudyResults, smaller: ArmResult) -> list[str]:
    """The arms that grew than which a smaller model is cheaper under most seeds that both have: it is at the target,
    and they are not, or for more FLOPs, all-in."""
    found = []
    for arm in results.arms:
        ended = {one.seed: one for one in arm.seeds if one.complete and (one.given is None or one.all_in is not None)}
        pairs = [(one, ended[one.seed]) for one in smaller.seeds if one.complete and one.seed in ended]
        under = sum(_costs_less(one, other) for one, other in pairs)
        if arm.role == "arm" and 2 * under > len(pairs):
            found.append(f"'{arm.name}' under {under} of {len(pairs)} seeds")
    return found


def _costs_less(one: SeedResult, other: SeedResult) -> bool:
    return one.all_in is not None and (other.all_in is None or one.all_in < other.all_in)


def aim(results: StudyResults) -> str:
    """The head of a column of what trials cost at what they are judged by."""
    margin = results.rule["tuning"]["margin"]
    return "all-in FLOPs at the target" + (f", bettered by {margin:g}" if margin else "")


def _missed(given: Summary) -> str:
    missed = given.of - given.reached
    return f"; under {missed} of {given.of} seeds it did not reach the target" if missed else ""


def doubts(results: StudyResults) -> Iterator[str]:
    """What makes savings worth less: a smaller model or a source that needs no growing, and what runs differ in."""
    for arm in results.arms:
        if arm.role == "smaller" and (others := cheaper_than(results, arm)):
            yield (
                f"{without_growing(arm)}. It needs fewer FLOPs, all-in, than {', '.join(others)}: where that is so, "
                "nothing needs to be grown for the target alone."
            )
    for arm in results.arms:
        if arm.source_enough:
            yield (
                f"The source of '{arm.name}' is at the target by itself under {arm.source_enough} of {arm.given.of} "
                "seeds: its saving says that a smaller model would do."
            )
    yield from dict.fromkeys(remark for arm in results.arms for remark in arm.remarks)


def _unknown(arm: ArmResult) -> str:
    names = list(dict.fromkeys(one.unknown for one in arm.seeds if one.unknown))
    return f"the training of {', '.join(names)} is not recorded"


def _said(summary: Summary) -> str:
    sample = summary.sample
    if sample is None:
        return "–"
    if sample.low is None:
        return f"{sample.mean:.1f} % (one seed)".replace("-", MINUS)
    return f"{sample.mean:.1f} % ({sample.low:.1f} to {sample.high:.1f})".replace("-", MINUS)


def break_even(arm: ArmResult) -> str:
    """Of how many target models one small model must be the source."""
    if arm.break_even is None:
        known = arm.given.of and arm.given.reached == arm.given.scratch == arm.given.of
        return "never" if known and any(one.source for one in arm.seeds) else "–"
    return "at once" if arm.break_even <= 1 else f"{arm.break_even:.1f} uses"


def difference(sample: Sample) -> str:
    """`−0.1203 (−0.1402 to −0.1004)`."""
    doubt = f" ({signed(sample.low)} to {signed(sample.high)})" if sample.low is not None else " (one seed)"
    return signed(sample.mean) + doubt


def equal_saving(arm: ArmResult) -> str:
    """The mean of the seeds under which two horizons enclose the arm's end."""
    known = [one.equal.saving for one in arm.seeds if one.equal and one.equal.saving is not None]
    compared = sum(one.equal is not None for one in arm.seeds)
    return f"{percent(sum(known) / len(known))} ({len(known)} of {compared} seeds)" if known else "–"


def final(sample: Sample | None) -> str:
    """`3.7801 ± 0.0042` (standard deviation)."""
    if sample is None:
        return "–"
    return decimal(sample.mean) + (f" ± {decimal(sample.deviation)}" if sample.deviation is not None else "")


def rule(results: StudyResults) -> Iterator[str]:
    """What was fixed before the first run."""
    held = results.rule
    target = "what the baseline ends with under the same seed" if held["target"] == "final" else f"{held['target']:g}"
    yield f"Compared is the {held['metric']}; the baseline is '{held['baseline']}', the target {target}."
    mean = f"a centred mean of {held['smooth']} evaluations" if held["smooth"] > 1 else "the evaluations as they are"
    yield (
        f"The target is reached where {mean} is at it and stays there, on a line between two evaluations, never beyond "
        "the last."
    )
    tuning = held["tuning"]
    if any(arm.trials for arm in results.arms):
        margin = f", bettered by {tuning['margin']:g}" if tuning["margin"] else ""
        yield (
            f"Every tuned arm had {tuning['trials']} trials under seed {tuning['seed']}, judged on the validation half "
            f"of the evaluation set: the baseline by its last value, the others by all-in FLOPs at that{margin}. What "
            "is claimed was measured on the test half, under other seeds."
        )
    else:
        yield "No arm was tuned. What is claimed was measured on the test half of the evaluation set."
    yield (
        f"Intervals are those of Student's t at {100 * held['confidence']:g} %: of the mean over the seeds, and, for "
        "one further seed, of prediction."
    )


def spent(results: StudyResults) -> str:
    return f"{flops(results.whole.training.flops)} of training in {len(results.spent)} runs"
