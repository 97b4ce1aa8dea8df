"""The runs that a study consists of: one for tuning, one for each seed, each an ordinary config of a run.

A source that several arms start from is one stage of a run, and so is a stage that is the same in several trials of an
arm, down to what it starts from: it is trained once.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.config import number_formats
from pipeline.config.model_sizes import ModelSizes
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


def tuning(study: Study, without: Collection[str] = ()) -> Composed | None:
    """The run in which all arms are tuned; None where none is. without: labels of trials that are not trained on."""
    order = [study.baseline, *(arm for arm in study.arms if arm != study.baseline)]
    tried = [trial for arm in order for trial in trials(study, arm)]
    if not tried:
        return None
    return _composed(study, study.tuned_at / TUNING, tried, study.tuning.seed, CHOSEN_ON, without)


def of_seed(study: Study, seed: int, choices: dict[str, Settings]) -> Composed:
    """The run of all arms that are trained under a seed, with what was chosen for them."""
    order = [study.baseline, *(arm for arm in study.arms if arm != study.baseline)]
    arms = [chosen(study, arm, choices) for arm in order if seed in study.seeds_of(arm)]
    return _composed(study, study.path / f"seed-{seed}", arms, seed, CLAIMED_ON)


def _composed(
    study: Study, folder: Path, tried: Sequence[Trial], seed: int, half: str, without: Collection[str] = ()
) -> Composed:
    """Raises UserError for a run that cannot be."""
    stages, ends = _merged(study, tried)
    if without:
        stages = _needed(stages, {end for label, end in ends.items() if label not in without})
    data = study.run.get("data")
    content = {
        **study.run,
        "name": f"{study.name}-{folder.name}",
        "folder": str(folder),
        "seed": seed,
        "stages": stages,
        "baseline": ends.get(study.baseline),
    }
    if isinstance(data, dict):
        content["data"] = {**data, "evaluate": half}
    try:
        config = number_formats.as_begun(Config.model_validate(content))
    except ValidationError as error:
        raise UserError(f"study '{study.name}', run '{folder.name}': {explain(error, content, Config)}") from error
    ends = {label: end for label, end in ends.items() if label not in without}
    _require_comparable(study, config, {trial.label: trial for trial in tried}, ends)
    return Composed(folder.name, config, tuple(tried), ends, None if half == CHOSEN_ON else seed)


def _merged(study: Study, tried: Sequence[Trial]) -> tuple[Stages, dict[str, str]]:
    """The stages of all trials, equal ones of an arm and sources once, and the last stage of each trial by its
    label."""
    known: dict[str, str] = {}
    merged: Stages = []
    ends: dict[str, str] = {}
    for trial in tried:
        renamed: dict[Any, str] = {}
        stages = stages_of(study, trial)
        for stage in stages:
            body = {key: renamed.get(value, value) if key in ORIGINS else value for key, value in stage.items()}
            owner = "" if stage in study.sources else trial.arm
            digest = owner + json.dumps({**body, "name": None}, sort_keys=True, default=str)
            if digest not in known:
                known[digest] = trial.label if stage is stages[-1] else _between(study, trial, stage)
                merged.append({**body, "name": known[digest]})
            renamed[stage["name"]] = known[digest]
        ends[trial.label] = renamed[stages[-1]["name"]]
    return merged, ends


def _needed(stages: Stages, ends: set[str]) -> Stages:
    """Those that lead to some of the ends."""
    needed: set[Any] = set(ends)
    for stage in reversed(stages):
        if stage["name"] in needed:
            needed |= {stage.get(key) for key in ORIGINS}
    return [stage for stage in stages if stage["name"] in needed]


def _between(study: Study, trial: Trial, stage: dict[str, Any]) -> str:
    """The name of a stage that is not the last one: its own of a source as the study has it, else one behind its
    trial's."""
    return str(stage.get("name")) if stage in study.sources else f"{trial.label}-{stage.get('name')}"


def _require_comparable(study: Study, config: Config, trials_by: dict[str, Trial], ends: dict[str, str]) -> None:
    """Raises UserError where the ends of the arms cannot be compared: other models (but for those that are to be
    smaller), blocks of other lengths, training that a target cuts off, a baseline that does not begin from scratch."""
    where, last = f"study '{study.name}'", {label: config.stage(name) for label, name in ends.items()}
    for label, stage in last.items():
        if not isinstance(stage, TrainStage):
            raise UserError(f"{where}, '{label}': ends with an expansion; a training stage comes last")
        if trials_by[label].arm in [*study.scratch, *study.smaller] and stage.start is not None:
            raise UserError(
                f"{where}, '{label}': what growing is compared with begins from scratch, and this starts from "
                f"'{stage.start}'"
            )
    large = {label: stage for label, stage in last.items() if trials_by[label].arm not in study.smaller}
    _require_same(where, "model", {label: stage.model for label, stage in large.items()})
    _require_same(where, "block", {label: config.block_of(stage) for label, stage in last.items()})
    target = next((config.models[stage.model] for stage in large.values()), None)
    for label, stage in last.items():
        if label not in large and target is not None:
            _require_smaller(f"{where}, '{label}'", config.models[stage.model], target)
    for stage in config.stages:
        if isinstance(stage, TrainStage) and stage.stop:
            raise UserError(f"{where}, stage '{stage.name}': stop: a study compares whole curves; leave it out")


def _require_same(where: str, what: str, held: dict[str, Any]) -> None:
    if len(set(held.values())) > 1:
        named = ", ".join(f"'{label}' {value}" for label, value in held.items())
        raise UserError(f"{where}: all arms end with the same {what}, and there are {named}")


def _require_smaller(where: str, model: ModelSizes, target: ModelSizes) -> None:
    """Raises UserError for a model whose loss is of another kind, or which is not smaller than the target."""
    if model.family != target.family:
        raise UserError(
            f"{where}: smaller: trains a {model.family}, and the target is a {target.family}; take one family"
        )
    sizes, most = ((each.layers, each.hidden, each.mlp_units) for each in (model, target))
    if sizes == most or any(own > other for own, other in zip(sizes, most, strict=True)):
        raise UserError(
            f"{where}: smaller: a model of {_in_words(sizes)} is not smaller than the target, of {_in_words(most)}; "
            "one of the target's sizes is an arm of the frontier"
        )


def _in_words(sizes: tuple[int, int, int]) -> str:
    return "{} layers, {} hidden and {} MLP units".format(*sizes)
