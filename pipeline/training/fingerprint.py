"""May a stage that was begun continue with the config as it is now?

A stage records its fingerprint when it begins: the settings that determine its results, those of its origins included.
How often it is logged, evaluated and saved, how much memory it uses and how it is distributed over ranks are no part of
it: after an out-of-memory error it continues with a smaller `micro_batch`. Nor is what it does about a spike.

A record is read through the schema: a key that was added to the schema after the record has its default.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from pipeline.config.data import Data
from pipeline.config.fit import FitChoice
from pipeline.config.model_sizes import ModelSizes
from pipeline.config.schema import RECORDED, Config, ExpandStage, FitStage, TrainStage
from pipeline.config.validation_errors import explain
from pipeline.errors import UserError
from pipeline.growth import methods
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import NUMBER_FORMATS, StageFacts, TrainFacts
from pipeline.records.strict import Strict
from pipeline.training import settled

CADENCE = {"evaluate_every", "save_every", "log_every", "save", "keep", "tensorboard", "trackers"}
LAYOUT = {"micro_batch", "activation_checkpointing", "zero_stage"}
"""The loss is the mean over all samples of a batch, however they are split; the sum's order changes its last digits.
With dropout, though, masks are drawn for each micro-batch: another micro_batch draws others, other ranks do not."""
ALLOWABLE = {"precision", "deepspeed", "attention", "compile", *NUMBER_FORMATS}
"""Settings of a training stage that change its results a little, and that may change where it is allowed (--allow)."""

POLICIES = {"stability", "accept", "stop"}
"""What was done by them is in the stage's events; a stage that has ended on a NaN goes on with another policy, what a
fit has left may be published at last, and a target decides no number before the end of the stage."""
LENGTH = ("stage.schedule.steps", "stage.grow_at")
"""The rates of the steps before are the same, whatever it is: `training/length.py` says what may follow."""
INHERITED = {"batch", "precision", "matmul_precision", *settled.BEFORE}
"""Keys of a fit that the stage behind its expansion may decide; the fit has recorded them."""
NO_RESULTS = CADENCE | LAYOUT | POLICIES
"""Keys of a stage that decide no number."""


class Fingerprint(Strict):
    """The settings of a stage as they are recorded. positions: those of models of text, where that is more than the
    data's block; `origin`: of the stage that it starts from or expands."""

    seed: int = 0
    data: Data
    model: ModelSizes
    positions: int | None = None
    stage: Annotated[TrainStage | ExpandStage | FitStage, Field(discriminator="kind")]
    origin: Annotated["Fingerprint | None", BeforeValidator(lambda origin: origin or None)] = None

    @classmethod
    def of(cls, config: Config, stage: TrainStage | ExpandStage) -> "Fingerprint":
        origin = next((cls.of(config, s) for s in config.stages if s.name == stage.origin), None)
        longest, usual = config.longest_block, getattr(config.data, "block", None)
        if isinstance(stage, TrainStage):
            stage = settled.as_begun(stage, StageFolder(config.path / stage.name))
        return cls(
            seed=config.seed,
            data=config.data,
            model=config.models[stage.model],
            positions=None if longest == usual else longest,
            stage=stage,
            origin=origin,
        )

    def settings(self) -> dict[str, Any]:
        """What must not change, every default written out, as JSON."""
        return {
            "seed": self.seed,
            "data": self.data.model_dump(mode="json", exclude={"workers"}),
            "model": self.model.model_dump(mode="json"),
            "positions": self.positions,
            "stage": self._stage(),
            "origin": self.origin.settings() if self.origin else {},
        }

    def _stage(self) -> dict[str, Any]:
        """The stage; of an expansion, its method with every option."""
        settings = self.stage.model_dump(mode="json", exclude=NO_RESULTS)
        if isinstance(self.stage, TrainStage):
            settings |= {"gradient_sums": self.stage.sums, "matmul_precision": self.stage.products}
            settings["deepspeed"] = self.stage.deepspeed.deciding()
        if isinstance(self.stage, ExpandStage | FitStage):
            method = self.stage.method
            options = methods.parse(method.name, method.options).options.model_dump(mode="json")
            settings["method"] = {"name": method.name, **options}
        if isinstance(self.stage, ExpandStage):
            learned = methods.is_learned(self.stage.method.name)
            fit = (self.stage.fit or FitChoice()) if learned else None
            settings["fit"] = _of_fit(fit) if fit else None
        return settings


def _of_fit(fit: FitChoice) -> dict[str, Any]:
    return fit.model_dump(mode="json", exclude=NO_RESULTS | INHERITED) | {"deepspeed": fit.deepspeed.deciding()}


def require_same(
    config: Config, stage: TrainStage | ExpandStage, allowed: Collection[str] = (), *, each: bool = False
) -> None:
    """Raises a UserError that lists every setting that has changed since the stage was begun, its origins' included.

    allowed: settings of a training stage that may change before its end. each: every stage of the config is checked, so
    that the changes of an origin are told once, by the origin.
    """
    changes = _changes(config, stage, allowed)
    if each and stage.origin in {s.name for s in config.stages if _changes(config, s)}:
        changes = [change for change in changes if not change.startswith("origin.")]
    if changes:
        raise UserError(_refusal(config, stage, changes))


def _changes(config: Config, stage: TrainStage | ExpandStage, allowed: Collection[str] = ()) -> list[str]:
    folder = StageFolder(config.path / stage.name)
    if folder.facts is None:
        return []
    before, now = _recorded(folder.path, folder.facts), Fingerprint.of(config, stage).settings()
    may_change = set() if folder.finished else {f"stage.{key}" for key in ALLOWABLE.intersection(allowed)}
    decides = (each for each in differences(before, now) if not each[0].endswith(LENGTH) and not _unsaid(*each))
    changed = (each for each in decides if _key(each[0]) not in may_change and not settled.agree(*each))
    return [
        f"{place} was {_shown(settled.as_recorded(place, old))}, is now {_shown(new)}" for place, old, new in changed
    ]


def _key(place: str) -> str:
    """The key of a stage that a place of the settings is or is inside of, `stage.KEY`; other places as they are."""
    return ".".join(place.split(".")[:2]) if place.startswith("stage.") else place


def _refusal(config: Config, stage: TrainStage | ExpandStage, changes: list[str]) -> str:
    path, behind = config.path / stage.name, begun_from(config, stage.name)
    return (
        f"{path}: begun with other settings: {'; '.join(changes)}; {_allowing(path, changes)}"
        f"take another folder (folder=…) or remove {path}"
        + (f" and what was begun from it ({', '.join(behind)})" if behind else "")
    )


def _allowing(path: Path, changes: list[str]) -> str:
    """The options that allow all of the changes, if any do."""
    changed = {_key(change.partition(" ")[0]).removeprefix("stage.") for change in changes}
    if StageFolder(path).finished or not changed <= ALLOWABLE:
        return ""
    return f"go on with it all the same ({' '.join(f'--allow {key}' for key in sorted(changed))}), "


def begun_from(config: Config, origin: str) -> list[str]:
    """The begun stages, fits among them, that start from `origin` or from one of these."""
    expansions = [stage for stage in config.stages if isinstance(stage, ExpandStage)]
    direct = [stage.name for stage in config.stages if stage.origin == origin]
    direct += [stage.fit_name for stage in expansions if stage.source == origin]
    direct += [stage.name for stage in expansions if stage.fit_name == origin]
    names = dict.fromkeys(name for each in direct for name in (each, *begun_from(config, each)))
    return [name for name in names if StageFolder(config.path / name).facts]


def _recorded(folder: Path, facts: StageFacts) -> dict[str, Any]:
    """The settings that a stage has recorded. Where the fingerprint says nothing of a number format, the stage's facts
    do, and nothing does of those of its origins."""
    settings = _read(folder, facts.fingerprint).settings()
    each, said = settings, facts.fingerprint
    while each:
        known = facts.settings if each is settings and isinstance(facts, TrainFacts) else None
        for key in (key for key in NUMBER_FORMATS if key not in said["stage"] and key in each["stage"]):
            each["stage"][key] = getattr(known, key, None)
        each, said = each["origin"], said.get("origin") or {}
    return settings


def _unsaid(place: str, before: Any, now: Any) -> bool:
    """Whether it is a number format of which one side says nothing."""
    return place.rpartition(".")[2] in NUMBER_FORMATS and None in (before, now)


def _read(folder: Path, recorded: dict[str, Any]) -> Fingerprint:
    try:
        return Fingerprint.model_validate(recorded, context=RECORDED)
    except ValidationError as error:
        raise UserError(
            f"{folder}: begun with settings that this version does not know: {explain(error, recorded, Fingerprint)}; "
            f"continue with the version that began it, take another folder (folder=…), or remove {folder}"
        ) from error


def differences(before: Any, now: Any, *keys: str) -> Iterator[tuple[str, Any, Any]]:
    """(dotted place, value before, value now) of everything that differs; None stands for a missing key."""
    if isinstance(before, dict) and isinstance(now, dict) and bool(before) == bool(now):
        for key in {**before, **now}:
            yield from differences(before.get(key), now.get(key), *keys, key)
    elif before != now:
        yield ".".join(keys), before, now


def _shown(value: Any) -> str:
    return "set" if isinstance(value, dict) and value else "not set" if value is None or value == {} else str(value)
