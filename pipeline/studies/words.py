"""The results of a study in words: for the page, the terminal and the table."""

from collections.abc import Iterator

from pipeline.report.formatting import MINUS, decimal, flops
from pipeline.studies.results import ArmResult, StudyResults, Summary
from pipeline.studies.statistics import Sample

COUNTS = {
    "given": "given the small model",
    "all_in": "all-in, the training of the small model added",
    "tuned": "all-in with tuning, the trials of both sides added",
    "time": "seconds of training steps, all-in",
}


def percent(number: float | None) -> str:
    """`54.3 %`, `−3.1 %`."""
    return "–" if number is None else f"{number:.1f} %".replace("-", MINUS)


def interval(sample: Sample | None, *, next_one: bool = False) -> str:
    """`48.2 to 60.4 %`: of the mean, or of one further seed."""
    if sample is None or sample.low is None:
        return "–"
    low, high = (sample.next_low, sample.next_high) if next_one else (sample.low, sample.high)
    return f"{low:.1f} to {high:.1f} %".replace("-", MINUS)


def saved(summary: Summary) -> str:
    """`54.3 % (48.2 to 60.4)`, with how many seeds have not reached the target."""
    if summary.sample is None:
        return "not reached" if summary.of else "–"
    sample, missed = summary.sample, summary.of - summary.reached
    doubt = f" ({sample.low:.1f} to {sample.high:.1f})" if sample.low is not None else " (one seed)"
    text = f"{sample.mean:.1f} %{doubt}".replace("-", MINUS)
    return f"{text}, not reached in {missed} of {summary.of} seeds" if missed else text


def statements(results: StudyResults) -> Iterator[str]:
    """A sentence for each arm that grew, the one that saves most all-in first."""
    grown = [arm for arm in results.arms if arm.role == "arm" and arm.seeds]
    for arm in sorted(grown, key=lambda arm: -(arm.all_in.sample.mean if arm.all_in.sample else float("-inf"))):
        yield statement(arm, results)


def statement(arm: ArmResult, results: StudyResults) -> str:
    """What an arm saved, by what is counted."""
    if arm.given.sample is None:
        return f"'{arm.name}' reached the target under none of {arm.given.of} seeds."
    missed = arm.given.of - arm.given.reached
    start = f"'{arm.name}' saves {_said(arm.given)} given the small model, {_said(arm.all_in)} all-in"
    tuned = f", {_said(arm.tuned)} with all trials of both sides charged" if arm.trial_flops else ""
    doubt = f"; under {missed} of {arm.given.of} seeds it did not reach the target" if missed else ""
    return f"{start}{tuned}{doubt}."


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
        return "never" if arm.seeds and arm.seeds[0].source else "–"
    return "at once" if arm.break_even <= 1 else f"{arm.break_even:.1f} uses"


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
    yield (
        f"Every tuned arm had {tuning['trials']} trials under seed {tuning['seed']}, judged on the validation half of "
        "the evaluation set: the baseline by its last value, the others by all-in FLOPs at that. What is claimed was "
        "measured on the test half, under other seeds."
    )
    yield (
        f"Intervals are those of Student's t at {100 * held['confidence']:g} %: of the mean over the seeds, and, for "
        "one further seed, of prediction."
    )


def spent(results: StudyResults) -> str:
    return f"{flops(results.whole.training.flops)} of training in {len(results.spent)} runs"
