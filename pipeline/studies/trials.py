"""The trials of an arm, and an arm with the settings of one of them, as stages of a run."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from pipeline import config
from pipeline.studies.schema import Settings, Study

Stages = list[dict[str, Any]]
"""As they stand in a run's config."""
ORIGINS = ("start", "source")
"""Keys of a stage that name another one."""


@dataclass(frozen=True)
class Trial:
    """An arm with settings. label: the name of its last stage in a run."""

    label: str
    arm: str
    settings: Settings


def trials(study: Study, arm: str) -> list[Trial]:
    """Those in which an arm is tuned, in the order of its grid; none of one that is not."""
    return [Trial(f"{arm}-t{number}", arm, settings) for number, settings in enumerate(study.arms[arm].trials, start=1)]


def chosen(study: Study, arm: str, choices: dict[str, Settings]) -> Trial:
    """An arm as it is compared: with the settings that were chosen for it, or for the arm that it is `like`."""
    return Trial(arm, arm, choices.get(study.arms[arm].like or arm, {}))


def stages_of(study: Study, trial: Trial) -> Stages:
    """The stages that lead to the end of a trial, its sources first, under the names that the study gives them. Raises
    UserError for a setting of no stage."""
    tree: dict[str, Any] = {"stages": deepcopy([*study.sources, *study.arms[trial.arm].stages])}
    for key, value in trial.settings.items():
        config.put(tree, f"stages.{key}", deepcopy(value), f"arms.{trial.arm}.tune")
    listed: Stages = tree["stages"]
    needed = {listed[-1].get("name")}
    for stage in reversed(listed):
        if stage.get("name") in needed:
            needed |= {stage.get(key) for key in ORIGINS}
    return [stage for stage in listed if stage.get("name") in needed]
