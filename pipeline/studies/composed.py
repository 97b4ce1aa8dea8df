"""The runs that a study consists of: one for tuning, one for each seed, each an ordinary config of a run.

Stages that are the same in several arms, down to what they start from, are one stage of the run: what arms share is
trained once.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import number_formats
from pipeline.config.schema import Config, TrainStage
from pipeline.config.validation_errors import explain
from pipeline.errors import UserError
from pipeline.studies.schema import Settings, Study
from pipeline.studies.trials import ORIGINS, Stages, Trial, chosen, stages_of, trials

TUNING = "tuning"
CHOSEN_ON, CLAIMED_ON = "validation", "test"
"""Halves of the evaluation set."""


@dataclass(frozen=True)
class Composed:
    """A run of a study. ends: the last stage of each trial, by its label. seed: None of the tuning."""

    name: str
    config: Config
    trials: tuple[Trial, ...]
    ends: dict[str, str]
    seed: int | None

    @property
    def path(self) -> Path:
        return self.config.path


def tuning(study: Study) -> Composed | None:
    """The run in which all arms are tuned; None where none is."""
    order = [study.baseline, *(arm for arm in study.arms if arm != study.baseline)]
    tried = [trial for arm in order for trial in trials(study, arm)]
    return _composed(study, TUNING, tried, study.tuning.seed, CHOSEN_ON) if tried else None


def of_seed(study: Study, seed: int, choices: dict[str, Settings]) -> Composed:
    """The run of all arms that are trained under a seed, with what was chosen for them."""
    order = [study.baseline, *(arm for arm in study.arms if arm != study.baseline)]
    arms = [chosen(study, arm, choices) for arm in order if seed in study.seeds_of(arm)]
    return _composed(study, f"seed-{seed}", arms, seed, CLAIMED_ON)


def _composed(study: Study, name: str, tried: Sequence[Trial], seed: int, half: str) -> Composed:
    """Raises UserError for a run that cannot be."""
    stages, ends = _merged(study, tried)
    data = study.run.get("data")
    content = {
        **study.run,
        "name": f"{study.name}-{name}",
        "folder": str(study.path / name),
        "seed": seed,
        "stages": stages,
        "baseline": ends.get(study.baseline),
    }
    if isinstance(data, dict):
        content["data"] = {**data, "evaluate": half}
    try:
        config = number_formats.as_begun(Config.model_validate(content))
    except ValidationError as error:
        raise UserError(f"study '{study.name}', run '{name}': {explain(error, content, Config)}") from error
    _require_comparable(study, config, ends)
    return Composed(name, config, tuple(tried), ends, None if half == CHOSEN_ON else seed)


def _merged(study: Study, tried: Sequence[Trial]) -> tuple[Stages, dict[str, str]]:
    """The stages of all trials, equal ones once, and the last stage of each trial by its label."""
    known: dict[str, str] = {}
    merged: Stages = []
    ends: dict[str, str] = {}
    for trial in tried:
        renamed: dict[Any, str] = {}
        stages = stages_of(study, trial)
        for stage in stages:
            local = stage.get("name")
            body = {key: renamed.get(value, value) if key in ORIGINS else value for key, value in stage.items()}
            digest = json.dumps({key: value for key, value in body.items() if key != "name"}, sort_keys=True)
            if digest not in known:
                name = trial.label if stage is stages[-1] else _between(study, trial, stage)
                known[digest] = name
                merged.append({**body, "name": name})
            renamed[local] = known[digest]
        ends[trial.label] = renamed[stages[-1].get("name")]
    return merged, ends


def _between(study: Study, trial: Trial, stage: dict[str, Any]) -> str:
    """The name of a stage that is not the last one: its own of a source as the study has it, else one behind its
    trial's."""
    return str(stage.get("name")) if stage in study.sources else f"{trial.label}-{stage.get('name')}"


def _require_comparable(study: Study, config: Config, ends: dict[str, str]) -> None:
    """Raises UserError where the ends of the arms train different models, or are cut off by a target."""
    last = {label: config.stage(name) for label, name in ends.items()}
    for label, stage in last.items():
        if not isinstance(stage, TrainStage):
            raise UserError(f"study '{study.name}', '{label}': ends with an expansion; a training stage comes last")
    models = {stage.model for stage in last.values()}
    if len(models) > 1:
        named = ", ".join(f"'{label}' trains '{stage.model}'" for label, stage in last.items())
        raise UserError(f"study '{study.name}': all arms end with the same model, and {named}")
    for stage in config.stages:
        if isinstance(stage, TrainStage) and stage.stop:
            raise UserError(
                f"study '{study.name}', stage '{stage.name}': stop: a study compares whole curves; leave it out"
            )
