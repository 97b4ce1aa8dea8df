"""A study from its first run to its last: tuning, choices, the seeds one after the other. What has ended is skipped."""

import logging
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import UserError
from pipeline.records import run_folder
from pipeline.records.run_folder import read_json, write_json
from pipeline.report.formatting import duration, percent
from pipeline.runs import run, shared_data
from pipeline.studies import choice, planned
from pipeline.studies.composed import Composed, of_seed, tuning
from pipeline.studies.planned import Outlook, Speed
from pipeline.studies.schema import Settings, Study
from pipeline.studies.trials import trials
from pipeline.training.environment import Launched
from pipeline.training.launcher import Start

logger = logging.getLogger(__name__)

PROTOCOL = "protocol.json"
"""The rule, as it was when the first run began, and the arms and seeds with the day on which each was added."""
RULE = ("metric", "baseline", "frontier", "target", "smooth", "confidence", "tuning")


def go(study: Study, start: Start) -> None:
    """Everything that a study asks for and that is missing. Raises UserError, FaultError and Preempted."""
    progress = Progress(study, start)
    tuned = tuning(study)
    if tuned is not None:
        progress.run(tuned)
        if start.first:
            choice.fix(study, tuned)
        progress = Progress(study, start)
    for seed in study.seeds:
        progress.run(of_seed(study, seed, choices(study)))


class Progress:
    """The stages of a study, of which more and more have ended. Raises UserError with what a run would say."""

    def __init__(self, study: Study, start: Start):
        self._start, self._runs = start, all_runs(study)
        self._stages = planned.planned(self._runs, start)
        if start.first:
            fix_rule(study)
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
    """In the order in which they are run. Before the tuning has ended, the first trial of each arm stands for the
    chosen one. Raises UserError."""
    tuned = tuning(study)
    known = choices(study) or {arm: trials(study, arm)[0].settings for arm in study.arms if study.arms[arm].tune}
    return [*([tuned] if tuned else []), *(of_seed(study, seed, known) for seed in study.seeds)]


def choices(study: Study) -> dict[str, Settings]:
    """What was chosen for each arm; empty before that."""
    return choice.recorded(study)


def words(found: Outlook) -> str:
    """Such as `12 of 61 stages done, 23.1 % of the FLOPs, about 1 h 05 min left`."""
    flops = f", {percent(found.flops)} of the FLOPs" if found.flops is not None else ""
    left = f", about {duration(found.seconds)} left" if found.seconds else ""
    return f"{found.done} of {found.stages} stages done{flops}{left if found.done < found.stages else ''}"


def fix_rule(study: Study) -> None:
    """Record the rule before the first run, and the day of every arm and seed. Raises UserError where the rule is
    another by now."""
    path, now = study.path / PROTOCOL, datetime.now(UTC).date().isoformat()
    rule = {key: study.model_dump(mode="json")[key] for key in RULE}
    with run_folder.exclusive(study.path):
        before = read_json(path) if path.exists() else {"rule": rule, "arms": {}, "seeds": {}}
        for key in RULE:
            if before["rule"].get(key) != rule[key]:
                raise UserError(
                    f"{path}: the study began with {key} {before['rule'].get(key)!r}, and the config has "
                    f"{rule[key]!r}; a rule is fixed before the first run: take another folder (folder=…), or leave it"
                )
        arms: dict[str, Any] = {**dict.fromkeys(study.arms, now), **before["arms"]}
        seeds = {**dict.fromkeys(map(str, study.seeds), now), **before["seeds"]}
        write_json(path, {"rule": rule, "arms": arms, "seeds": seeds})
