"""A study from its first run to its last: tuning, choices, the seeds one after the other. What has ended is skipped."""

import logging

from pipeline.config import dump
from pipeline.errors import UserError
from pipeline.records.run_folder import StageFolder, read_json, write_json
from pipeline.report.formatting import duration, percent
from pipeline.runs import run, shared_data
from pipeline.runs.first_node import dividing_work
from pipeline.studies import choice, planned, protocol
from pipeline.studies.composed import Composed, of_seed, tuning
from pipeline.studies.planned import Outlook, Speed
from pipeline.studies.schema import Settings, Study
from pipeline.studies.trials import trials
from pipeline.training import fingerprint
from pipeline.training.environment import Launched
from pipeline.training.launcher import Start

logger = logging.getLogger(__name__)

BROKEN = "broken-down.json"
"""The trials that have broken down, each with what was said of it."""


def go(study: Study, start: Start) -> None:
    """Everything that a study asks for and that is missing. Raises UserError, FaultError and Preempted."""
    study.path.mkdir(parents=True, exist_ok=True)
    with dividing_work(study.path, start) as on_first:
        on_first(lambda: protocol.fix(study, dump(study)), lambda: protocol.of(study) is not None)
        if study.tuned and study.tuned_in is None:
            _tune(study, start)
            on_first(lambda: choice.fix(study, tuned_run(study)), lambda: choice.complete(study))
    if not choice.complete(study):
        raise UserError(f"{study.tuned_at}: no choice is recorded there for every tuned arm; finish that study first")
    progress = Progress(study, start)
    for seed in study.seeds:
        progress.run(of_seed(study, seed, choice.recorded(study)))


def _tune(study: Study, start: Start) -> None:
    """Train all trials. One that breaks down is left, and the others go on."""
    progress = Progress(study, start)
    while True:
        tuned = tuned_run(study)
        try:
            return progress.run(tuned)
        except UserError as error:
            broken = _broke_down(tuned)
            if not broken or not start.alone:
                raise
            logger.warning(f"study: {', '.join(broken)} has broken down and counts as the worst of its arm: {error}")
            write_json(study.path / BROKEN, {**broken_trials(study), **dict.fromkeys(broken, str(error))})


def broken_trials(study: Study) -> dict[str, str]:
    """By label, with what was said."""
    path = study.tuned_at / BROKEN
    return read_json(path) if path.exists() else {}


def tuned_run(study: Study) -> Composed:
    """The run in which arms are tuned, without the trials that have broken down; there must be one."""
    tuned = tuning(study, broken_trials(study))
    assert tuned is not None, "no arm is tuned"
    return tuned


def _broke_down(tuned: Composed) -> list[str]:
    """The trials whose last training has ended itself, because its loss was no number."""
    ends = {label: StageFolder(tuned.path / end) for label, end in tuned.ends.items()}
    return [
        label
        for label, folder in ends.items()
        if not folder.finished and any(event.action == "abort" for event in folder.events)
    ]


class Progress:
    """The stages of a study, of which more and more have ended. Raises UserError with what a run would say."""

    def __init__(self, study: Study, start: Start):
        self._start, self._runs = start, all_runs(study)
        self._stages = planned.planned(self._runs, start)
        self._speeds = self._measured(study)
        self._say()

    def run(self, composed: Composed) -> None:
        """One of the runs. Those behind the first read its data."""
        first, done = self._runs[0], {(stage.run, stage.name) for stage in self._stages if stage.done}
        if composed.path != first.path and self._start.first:
            shared_data.share(first.path / "data", composed.path)

        def behind(name: str) -> None:
            if (composed.name, name) not in done:
                self._say(f"'{composed.name}/{name}' has ended; ")

        run.all_stages(composed.config, self._start, behind)

    def _measured(self, study: Study) -> dict[str, Speed]:
        """Speeds, where this command alone starts all workers; the data come first."""
        start, runs = self._start, self._runs
        if not start.alone or isinstance(start, Launched) or all(stage.done for stage in self._stages):
            return {}
        run.prepare_alone(runs[0].config, start)
        for each in runs[1:]:
            shared_data.share(runs[0].path / "data", each.path)
        self._stages = planned.planned(runs, start)
        return planned.measured_speeds(study.path, runs, self._stages)

    def _say(self, said: str = "") -> None:
        if self._start.first:
            self._stages = planned.refreshed(self._stages)
            logger.info(f"study: {said}{words(planned.outlook(self._stages, self._speeds))}")


def all_runs(study: Study) -> list[Composed]:
    """In the order in which they are run. For an arm of which nothing is chosen yet, its first trial stands. Raises
    UserError."""
    known = first_trials(study) | choice.recorded(study)
    own = study.tuned and study.tuned_in is None
    return [*([tuned_run(study)] if own else []), *(of_seed(study, seed, known) for seed in study.seeds)]


def first_trials(study: Study) -> dict[str, Settings]:
    return {arm: trials(study, arm)[0].settings for arm, keys in study.arms.items() if keys.tune}


def require_as_begun(study: Study) -> None:
    """Raises UserError where the rule, or what decides the numbers of a stage that has begun, is another by now."""
    protocol.of(study)
    for composed in all_runs(study):
        for stage in composed.config.stages:
            fingerprint.require_same(composed.config, stage, each=True)


def words(found: Outlook) -> str:
    """Such as `12 of 61 stages done, 23.1 % of the FLOPs, about 1 h 05 min left`."""
    flops = f", {percent(found.flops)} of the FLOPs" if found.flops is not None else ""
    left = f", about {duration(found.seconds)} left" if found.seconds else ""
    return f"{found.done} of {found.stages} stages done{flops}{left if found.done < found.stages else ''}"
