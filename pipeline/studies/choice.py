"""Which trial of an arm is best, by what was measured on the validation half.

Of the baseline: the one that ends best. Of another arm: the one that keeps the chosen baseline's final value, bettered
by the margin, for the fewest FLOPs, all-in; where none keeps it, the one that ends best. A trial that has broken down
is the worst.
"""

from pydantic import TypeAdapter, ValidationError

from pipeline.accounting.crossing import Metric
from pipeline.accounting.recorded_runs import Content, RecordReader
from pipeline.errors import UserError
from pipeline.records.run_folder import read_json, write_json
from pipeline.studies.composed import Composed
from pipeline.studies.curves import Curve, curve
from pipeline.studies.schema import Settings, Study
from pipeline.studies.trials import Trial

FILE = "choices.json"
_CHOICES: TypeAdapter[dict[str, Settings]] = TypeAdapter(dict[str, Settings])


class TrialResult(Content):
    """What a trial measured on the validation half. final: None of one that has broken down; flops: of its own
    training, all_in: with its sources', None where that is not recorded; at_target: FLOPs, all-in where that is known,
    from which on it keeps the baseline's final value, bettered by the margin, None: it does not."""

    label: str
    settings: Settings
    final: float | None
    flops: int
    all_in: int | None
    at_target: int | None
    chosen: bool


def fix(study: Study, tuned: Composed) -> None:
    """Record what is chosen, once. Raises UserError where an arm has been tuned otherwise since, or none of its trials
    has measured anything."""
    results = judged(study, tuned)
    found = {arm: next(each.settings for each in tried if each.chosen) for arm, tried in results.items()}
    path, before = study.tuned_at / FILE, recorded(study)
    if missing := [arm for arm, keys in study.arms.items() if keys.tune and arm not in found]:
        raise UserError(
            f"{tuned.path}: no trial of arm '{missing[0]}' has measured the {study.metric}; tune it otherwise"
        )
    for arm in sorted(set(before) & set(found)):
        if before[arm] != found[arm]:
            raise UserError(
                f"{path}: {before[arm]} was chosen for arm '{arm}', and its trials now say {found[arm]}; a choice is "
                "made once: take another folder (folder=…) for other trials"
            )
    write_json(path, {**before, **found})


def recorded(study: Study) -> dict[str, Settings]:
    """The choices by arm; empty before there are any. Raises UserError for a damaged file."""
    path = study.tuned_at / FILE
    try:
        return _CHOICES.validate_python(read_json(path)) if path.exists() else {}
    except ValidationError as error:
        raise UserError(f"{path}: not what was chosen for each arm; the file is damaged, restore it") from error


def complete(study: Study) -> bool:
    """Whether a choice has been made for every arm that is tuned."""
    held = recorded(study)
    return all(arm in held for arm, keys in study.arms.items() if keys.tune)


def judged(study: Study, tuned: Composed) -> dict[str, list[TrialResult]]:
    """The trials by arm, the baseline first; an arm's are judged when all of them have ended or broken down."""
    reader, results = RecordReader(), dict[str, list[TrialResult]]()
    target: float | None = None
    for arm in dict.fromkeys(trial.arm for trial in tuned.trials):
        tried = [trial for trial in tuned.trials if trial.arm == arm]
        curves = {trial.label: _curve(study, tuned, trial, reader) for trial in tried if trial.label in tuned.ends}
        known = {label: found for label, found in curves.items() if found is not None}
        if len(known) < len(curves) or not known or (arm != study.baseline and target is None):
            continue
        results[arm] = _of_arm(tried, known, study.metric, target)
        if arm == study.baseline:
            target = _bettered(study, next(each.final for each in results[arm] if each.chosen))
    return results


def _bettered(study: Study, final: float | None) -> float | None:
    """The baseline's final value, by the margin."""
    margin = study.tuning.margin if study.metric == "top1" else -study.tuning.margin
    return None if final is None else final + margin


def _curve(study: Study, tuned: Composed, trial: Trial, reader: RecordReader) -> Curve | None:
    """Of a trial that has ended."""
    stage = reader.stage(tuned.path / tuned.ends[trial.label], "train")
    return curve(stage, reader, study.metric, study.smooth) if stage.finished else None


def _of_arm(tried: list[Trial], curves: dict[str, Curve], metric: Metric, target: float | None) -> list[TrialResult]:
    """target: what an arm is to reach and keep, None of the baseline itself."""
    order = 1 if metric == "loss" else -1
    at_target = {label: _cost(found, metric, target) for label, found in curves.items()}

    def rank(label: str) -> tuple[bool, float]:
        cost = at_target[label]
        return (cost is None, order * curves[label].final if cost is None else cost)

    best = min(curves, key=rank)
    return [_result(trial, curves.get(trial.label), at_target.get(trial.label), trial.label == best) for trial in tried]


def _result(trial: Trial, found: Curve | None, at_target: int | None, chosen: bool) -> TrialResult:
    return TrialResult(
        label=trial.label,
        settings=trial.settings,
        final=found.final if found else None,
        flops=found.flops if found else 0,
        all_in=found.all_flops if found else None,
        at_target=at_target,
        chosen=chosen,
    )


def _cost(found: Curve, metric: Metric, target: float | None) -> int | None:
    own = None if target is None else found.flops_at(target, metric)
    return None if own is None else own + (found.source_flops or 0)
