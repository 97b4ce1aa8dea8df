"""What a study's YAML says: what is compared, how each arm is tuned, under which seeds, by which rule."""

import math
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.accounting.crossing import Metric
from pipeline.config.schema import Place
from pipeline.config.validation_errors import ConfigProblems
from pipeline.errors import nearest
from pipeline.records.folder_names import FolderName
from pipeline.records.strict import Strict

OWN = ("name", "folder", "seed", "stages", "baseline")
"""Keys of a run that a study decides."""


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ValueError("each seed is a whole number of at least 0, and stands there once")
    return seeds


Seeds = Annotated[list[int], Field(min_length=1), AfterValidator(_distinct)]


class Tuning(Strict):
    """trials: of each arm that is tuned, the baseline among them; seed: of all trials. margin: by how much
    a trial has to pass the target, since one that is chosen for just reaching it under one seed may miss it under
    others."""

    trials: int = Field(4, ge=1, description="settings that are tried of every arm")
    seed: int = Field(0, ge=0, description="of all trials; no seed of the comparison")
    margin: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="of the metric, by which an arm's trial has to pass the target"
    )


Settings = dict[str, Any]
"""Values by dotted keys of an arm's stages, such as `large.schedule.peak`."""


class Arm(Strict):
    """One way to the target model: the last stage trains it (or, of those in `smaller`, a smaller one). A `start` or
    `source` is a stage of the arm, one of the study's `sources`, or a folder."""

    about: str = Field("", description="what it is, for the page")
    stages: list[dict[str, Any]] = Field(min_length=1, description="as in a run's config")
    tune: dict[str, list[Any]] | list[Settings] = Field(
        {}, description="values by key, every combination of which is a trial; or the trials one by one"
    )
    like: str | None = Field(None, description="an arm whose choice it takes, where it is not tuned itself")
    seeds: Seeds | Annotated[int, Field(ge=1)] | None = Field(
        None, description="those of the study's that it is trained under, or how many of its first; default: all"
    )

    @property
    def trials(self) -> list[Settings]:
        """In their order; none of an arm that is not tuned."""
        return _trials(self.tune)


class Study(Strict):
    """A whole study. The rule (metric, baseline, target, smooth) is fixed when the first run begins."""

    name: FolderName
    folder: Place = Field("studies/{name}", description="where its runs and results live; {name} is replaced")
    question: str = Field("", description="what it is to answer, for the page")
    metric: Metric = "loss"
    baseline: FolderName = Field(description="the arm from scratch that all are compared with")
    frontier: list[FolderName] = Field(
        [], description="arms from scratch with other horizons: what scratch reaches for less"
    )
    smaller: list[FolderName] = Field(
        [], description="arms that train a smaller model from scratch: what the target costs without growing"
    )
    target: float | Literal["final"] = Field(
        "final", description="final: what the baseline ends with under the same seed; or a value of the metric"
    )
    smooth: Annotated[int, Field(ge=1, le=99)] = Field(
        3, description="evaluations in the running mean of curves, an odd number; 1: curves as they are"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of all intervals")
    tuning: Tuning = Tuning()
    tuned_in: Place | None = Field(
        None, description="the folder of another study with the same arms, whose choices are taken; none are made here"
    )
    seeds: Seeds
    run: dict[str, Any] = Field(description="keys that all runs have: data, models, processes")
    sources: list[dict[str, Any]] = Field([], description="stages that several arms start from")
    only: list[FolderName] = Field(
        [], description="the arms that are trained, beside those of baseline, frontier, smaller and like; default: all"
    )
    arms: dict[FolderName, Arm] = Field(min_length=1)

    @property
    def path(self) -> Path:
        return Path(self.folder.replace("{name}", self.name))

    @property
    def tuned_at(self) -> Path:
        """The folder of the study whose trials count."""
        return Path(self.tuned_in) if self.tuned_in else self.path

    @property
    def tuned(self) -> bool:
        """Whether any arm is."""
        return any(arm.tune for arm in self.arms.values())

    @property
    def scratch(self) -> list[str]:
        """The baseline and its frontier."""
        return [self.baseline, *self.frontier]

    def seeds_of(self, arm: str) -> list[int]:
        """The seeds that an arm is trained under."""
        own = self.arms[arm].seeds
        return own if isinstance(own, list) else self.seeds[:own]

    @model_validator(mode="before")
    @classmethod
    def _without_the_others(cls, keys: Any) -> Any:
        """Arms that `only` leaves out are none of the study's."""
        arms, only = (keys.get("arms"), keys.get("only")) if isinstance(keys, dict) else (None, None)
        if not (isinstance(arms, dict) and isinstance(only, list) and only):
            return keys
        if unknown := [name for name in only if name not in list(arms)]:
            raise ConfigProblems([f"only: no arm '{name}'{nearest(str(name), arms)}" for name in unknown])
        lists = [held for key in ("frontier", "smaller") if isinstance(held := keys.get(key), list)]
        kept = [keys.get("baseline"), *chain.from_iterable(lists), *only]
        kept += [arm.get("like") for name, arm in arms.items() if name in kept and isinstance(arm, dict)]
        return {**keys, "arms": {name: arm for name, arm in arms.items() if name in kept}}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = [*self._of_rule(), *self._of_run(), *self._of_stages("sources", self.sources)]
        for name, arm in self.arms.items():
            problems += self._of_arm(name, arm)
        if problems:
            raise ConfigProblems(problems)
        return self

    def _of_rule(self) -> list[str]:
        problems = [
            f"{key}: no arm '{name}'{nearest(name, self.arms)}"
            for key, names in (("baseline", [self.baseline]), ("frontier", self.frontier), ("smaller", self.smaller))
            for name in names
            if name not in self.arms
        ]
        if self.smooth % 2 == 0:
            problems.append(f"smooth: {self.smooth} evaluations have no middle; choose an odd number")
        if self.baseline in self.arms and self.arms[self.baseline].seeds:
            problems.append(f"arms.{self.baseline}.seeds: the baseline is trained under all seeds; leave it out")
        if len(set(self.scratch)) < len(self.scratch):
            problems.append("frontier: an arm stands there once, and the baseline not at all")
        if len({*self.scratch, *self.smaller}) < len({*self.scratch}) + len(self.smaller):
            problems.append("smaller: an arm stands there once, and neither the baseline nor its frontier does")
        if isinstance(self.target, float) and not 0 < self.target <= (1 if self.metric == "top1" else math.inf):
            problems.append(f"target: {self.target} is no value of {self.metric} that is to be reached")
        if self.metric == "top1" and self.tuning.margin >= 1:
            problems.append(
                f"tuning.margin: {self.tuning.margin:g} of top1 is more than all; it is a share, such as 0.01"
            )
        if self.tuning.seed in self.seeds and self.tuned:
            problems.append(
                f"tuning.seed: {self.tuning.seed} is a seed of the comparison too; what is chosen under it may be its "
                "luck"
            )
        return problems

    def _of_run(self) -> list[str]:
        problems = [f"run.{key}: a study decides that itself; leave it out" for key in OWN if key in self.run]
        data = self.run.get("data")
        if isinstance(data, dict) and data.get("kind") == "text" and self.metric == "top1":
            problems.append("metric: top1 is of images; text is evaluated by its loss")
        if isinstance(data, dict) and "evaluate" in data:
            problems.append(
                "run.data.evaluate: a study tunes on the validation half and claims on the test half; leave it out"
            )
        return problems

    def _of_stages(self, where: str, stages: list[dict[str, Any]]) -> Iterator[str]:
        """What must be known of a stage before the runs are composed; the rest is told by them."""
        for stage in stages:
            name = stage.get("name")
            if not isinstance(name, str):
                yield f"{where}: a stage has no name; give each one"
            for key in ("start", "source"):
                if not isinstance(stage.get(key), str | None):
                    yield f"{where}.{name}.{key}: names a stage or a folder, and is {stage.get(key)!r}"

    def _of_shared(self, where: str, arm: Arm, other: Arm) -> Iterator[str]:
        """Settings that an arm is to take from another one, and has no stage for."""
        names = {stage.get("name") for stage in [*self.sources, *arm.stages]}
        for key in _keys(other.tune):
            if (stage := key.partition(".")[0]) not in names:
                yield f"{where}.like: '{arm.like}' is tuned by {key}, and this arm has no stage '{stage}'; call it so"

    def _of_arm(self, label: str, arm: Arm) -> list[str]:
        where, tuned = f"arms.{label}", bool(arm.tune)
        problems = [*self._of_stages(where, arm.stages), *_of_tune(where, arm)]
        sources = [stage.get("name") for stage in self.sources]
        problems += [
            f"{where}: its stage '{stage.get('name')}' has the name of a source; call it otherwise"
            for stage in arm.stages
            if stage.get("name") in sources
        ]
        if tuned and not self.arms.get(self.baseline, arm).tune:
            problems.append(f"{where}.tune: the baseline '{self.baseline}' is not tuned; tune it as hard")
        if tuned and (count := len(arm.trials)) != self.tuning.trials:
            problems.append(
                f"{where}.tune: {count} trials, and tuning.trials is {self.tuning.trials}; all arms are tuned alike"
            )
        if arm.like is not None and (tuned or arm.like not in self.arms or not self.arms[arm.like].tune):
            problems.append(f"{where}.like: '{arm.like}' is no other arm that is tuned, or this one is tuned itself")
        elif arm.like is not None:
            problems += self._of_shared(where, arm, self.arms[arm.like])
        if isinstance(arm.seeds, list) and (other := sorted(set(arm.seeds) - set(self.seeds))):
            problems.append(f"{where}.seeds: {other[0]} is none of the study's seeds")
        return problems


def _of_tune(where: str, arm: Arm) -> Iterator[str]:
    tried = _trials(arm.tune)
    if any(settings == other for index, settings in enumerate(tried) for other in tried[:index]):
        yield f"{where}.tune: two of its trials are the same; each is to be another one"
    if any(not settings for settings in tried):
        yield f"{where}.tune: a trial without settings; give each a value of a key"
    for key in _keys(arm.tune):
        if "." not in key:
            yield f"{where}.tune.{key}: a key is STAGE.KEY, such as large.schedule.peak"


def _keys(tune: dict[str, list[Any]] | list[Settings]) -> list[str]:
    """The keys by which an arm is tuned."""
    return list(dict.fromkeys(key for settings in ([tune] if isinstance(tune, dict) else tune) for key in settings))


def _trials(tune: dict[str, list[Any]] | list[Settings]) -> list[Settings]:
    """In their order; of a grid every combination."""
    if isinstance(tune, list):
        return tune
    return [dict(zip(tune, values, strict=True)) for values in product(*tune.values())] if tune else []
