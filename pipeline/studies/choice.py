"""Which trial of an arm is best, by what was measured on the validation half.

Of the baseline: the one that ends best. Of another arm: the one that keeps the chosen baseline's final value for the
fewest FLOPs, all-in; where none keeps it, the one that ends best.
"""

from pipeline.accounting.crossing import Metric
from pipeline.accounting.recorded_runs import Content, RecordReader
from pipeline.errors import UserError
from pipeline.records.run_folder import read_json, write_json
from pipeline.studies.composed import Composed
from pipeline.studies.curves import Curve, curve
from pipeline.studies.schema import Settings, Study
from pipeline.studies.trials import Trial

FILE = "choices.json"


class TrialResult(Content):
    """What a trial measured on the validation half. flops: of its own training, all_in: with its sources'; at_target:
    all-in FLOPs from which on it keeps the baseline's final value, None: it does not."""

    label: str
    settings: Settings
    final: float
    flops: int
    all_in: int
    at_target: int | None
    chosen: bool


def fix(study: Study, tuned: Composed) -> None:
    """Record what is chosen, once. Raises UserError where an arm has been tuned otherwise since."""
    results = judged(study, tuned)
    found = {arm: next(each.settings for each in tried if each.chosen) for arm, tried in results.items()}
    path, before = study.path / FILE, recorded(study)
    for arm in sorted(set(before) & set(found)):
        if before[arm] != found[arm]:
            raise UserError(
                f"{path}: {before[arm]} was chosen for arm '{arm}', and its trials now say {found[arm]}; a choice is "
                "made once: take another folder (folder=…) for other trials"
            )
    write_json(path, {**before, **found})


def recorded(study: Study) -> dict[str, Settings]:
    """The choices by arm; empty before there are any. Raises UserError for a damaged file."""
    path = study.path / FILE
    return read_json(path) if path.exists() else {}


def judged(study: Study, tuned: Composed) -> dict[str, list[TrialResult]]:
    """Every trial that has ended, by arm, the baseline first; an arm's are judged when all of them have."""
    reader, results = RecordReader(), dict[str, list[TrialResult]]()
    target: float | None = None
    for arm in dict.fromkeys(trial.arm for trial in tuned.trials):
        tried = [trial for trial in tuned.trials if trial.arm == arm]
        curves = {trial.label: _curve(study, tuned, trial, reader) for trial in tried}
        known = {label: found for label, found in curves.items() if found is not None}
        if len(known) < len(tried) or (arm != study.baseline and target is None):
            continue
        results[arm] = _of_arm(tried, known, study.metric, target)
        if arm == study.baseline:
            target = next(each.final for each in results[arm] if each.chosen)
    return results


def _curve(study: Study, tuned: Composed, trial: Trial, reader: RecordReader) -> Curve | None:
    """Of a trial that has ended."""
    stage = reader.stage(tuned.path / tuned.ends[trial.label], "train")
    return curve(stage, reader, study.metric, study.smooth) if stage.finished else None


def _of_arm(tried: list[Trial], curves: dict[str, Curve], metric: Metric, target: float | None) -> list[TrialResult]:
    """target: the chosen baseline's final value, None of the baseline itself."""
    order = 1 if metric == "loss" else -1
    at_target = {label: _all_in(found, metric, target) for label, found in curves.items()}

    def rank(trial: Trial) -> tuple[bool, float]:
        cost = at_target[trial.label]
        return (cost is None, order * curves[trial.label].final if cost is None else cost)

    best = min(tried, key=rank).label
    return [
        TrialResult(
            label=trial.label,
            settings=trial.settings,
            final=curves[trial.label].final,
            flops=curves[trial.label].flops,
            all_in=curves[trial.label].flops + curves[trial.label].source_flops,
            at_target=at_target[trial.label],
            chosen=trial.label == best,
        )
        for trial in tried
    ]


def _all_in(found: Curve, metric: Metric, target: float | None) -> int | None:
    own = None if target is None else found.flops_at(target, metric)
    return None if own is None else own + found.source_flops
