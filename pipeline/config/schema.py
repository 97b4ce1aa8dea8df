"""The one schema of a run: data, models, and a list of stages, with the keys that each takes and what must fit."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from pipeline.config import stages_fit
from pipeline.config.data import Data, TextData
from pipeline.config.deepspeed_keys import DeepSpeedKeys
from pipeline.config.fit import Attention, Compile, FitChoice
from pipeline.config.hang import HangChoice
from pipeline.config.model_sizes import ModelSizes
from pipeline.config.number_formats import BY_DEFAULT, IN_16_BITS, GradientSums, MatmulPrecision, Precision
from pipeline.config.stability import Stability
from pipeline.config.stage_data import StageData
from pipeline.config.stop import Stop
from pipeline.config.validation_errors import ConfigProblems, explain
from pipeline.durations import Duration, PositiveDuration, Share, Time
from pipeline.errors import UserError, nearest, placed
from pipeline.optim.optimizers import AdamW, Optimizer
from pipeline.optim.rewarm import Rewarm
from pipeline.optim.schedules import Schedule
from pipeline.records.file_hashes import Algorithm
from pipeline.records.folder_names import FolderName, usable_as_folder
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import OptimizerState, TrainFacts
from pipeline.records.strict import Strict


def _not_empty(place: str) -> str:
    if not place.strip() or "\0" in place:
        raise ValueError("names no folder; is a variable unset?")
    return place


Place = Annotated[str, AfterValidator(_not_empty)]
"""The path of a file or folder."""
TrackerName = Literal["tensorboard", "wandb"]
"""A program that draws what a stage measures."""


RECORDED = "recorded"
"""The context in which settings are read that a stage has recorded, which lack those that decide no number."""


class Retention(Strict):
    """Which checkpoints of a stage stay; the others go when a newer one is published and was read back. A plain number
    is short for `last`."""

    last: int = Field(2, ge=1, description="newest checkpoints kept")
    every: int | None = Field(None, ge=1, description="besides, each whose step is a multiple of this")
    best: bool = Field(False, description="besides, the one with the lowest evaluation loss")

    def most(self, steps: int) -> int:
        """Checkpoints that a stage of so many steps has at once, the one that is being written included."""
        return self.last + 1 + (steps // self.every if self.every else 0) + self.best


def _retention(keep: Any) -> Any:
    return {"last": keep} if isinstance(keep, int) and not isinstance(keep, bool) else keep


class TrainStage(Strict):
    """Train one model. `start` names an earlier stage (or a checkpoint folder); without it, from scratch."""

    kind: Literal["train"]
    name: FolderName
    model: str
    start: Place | None = None
    batch: int = Field(ge=1, description="samples per optimizer step, over all ranks")
    micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None, description="samples per rank and pass; default batch / ranks; auto: of that as much as fits into memory"
    )
    data: StageData = StageData()
    schedule: Schedule
    grow_at: Share | None = Field(
        None, description="ends the stage at this share of its schedule's horizon, such as '80 %'; an expansion follows"
    )
    rewarm: Rewarm | None = Field(
        None, description="a second warm-up of new entries, behind an expansion with optimizer_state asymmetric"
    )
    optimizer: Optimizer = AdamW()
    precision: Precision = Field(
        "fp32",
        description="bf16: weights, activations; bf16-autocast: weights in fp32, products in bf16 (torch.autocast); "
        "fp16: as bf16, with a loss scale (deepspeed.fp16)",
    )
    gradient_sums: GradientSums | None = Field(
        None,
        description="of precision bf16: in which gradients are summed over micro-batches and ranks; default: fp32, and "
        "what a begun stage has",
    )
    matmul_precision: MatmulPrecision | None = Field(
        None,
        description="of float32 matrix products, as torch.set_float32_matmul_precision takes it: high and medium are "
        "TF32 on GPUs, medium bf16 on CPUs that have it; default: highest, and what a begun stage has",
    )
    zero_stage: Literal[0, 1, 2, 3] = 1
    deepspeed: DeepSpeedKeys = Field(
        DeepSpeedKeys(), description="keys of DeepSpeed's own config, as its JSON has them: docs/deepspeed.md"
    )
    activation_checkpointing: bool | Annotated[int, Field(ge=1)] = Field(
        False, description="compute layers again in the backward pass: all of them, or the first of every so many"
    )
    attention: Attention = "auto"
    compile: Compile = "auto"
    evaluate_every: PositiveDuration = Duration.parse("100 steps")
    save_every: PositiveDuration = Duration.parse("200 steps")
    log_every: int = Field(1, ge=1, description="steps between two records in metrics.jsonl")
    save: Literal["background", "blocking"] = Field(
        "background",
        description="background: the state is copied to host memory and written while the training goes on; blocking: "
        "the training waits for the files, and needs no memory for a copy",
    )
    keep: Annotated[Retention, BeforeValidator(_retention)] = Retention()
    trackers: tuple[TrackerName, ...] = Field(
        (),
        description="what its metrics are written for besides: tensorboard, wandb (offline: nothing is sent); "
        "docs/trackers.md",
    )
    tensorboard: bool = Field(False, description="the same as trackers: [tensorboard]")
    stability: Stability = Stability()
    stop: Stop | None = Field(None, description="ends the stage at the first evaluation that reaches a target")

    @property
    def origin(self) -> str | None:
        return self.start

    @property
    def tracked_by(self) -> tuple[TrackerName, ...]:
        """Its trackers, each once."""
        return tuple(dict.fromkeys((*(("tensorboard",) if self.tensorboard else ()), *self.trackers)))

    @property
    def sums(self) -> GradientSums | None:
        """In which gradients of precision bf16 are summed; None in others, where it is fp32."""
        return (self.gradient_sums or "fp32") if self.precision == "bf16" else None

    @property
    def sums_in_fp32(self) -> bool:
        """Whether gradients in 16 bits are summed in float32."""
        return self.precision == "fp16" or self.sums == "fp32"

    @property
    def in_16_bits(self) -> bool:
        """Whether the weights that the model computes with have 16 bits."""
        return self.precision in IN_16_BITS

    @property
    def products(self) -> MatmulPrecision:
        """What float32 matrix products are made of."""
        return self.matmul_precision or BY_DEFAULT

    @model_validator(mode="after")
    def _goes_with_its_zero_stage(self, info: ValidationInfo) -> Self:
        """Of a record nothing is asked: it names no ZeRO stage."""
        if info.context == RECORDED:
            return self
        self.deepspeed.require_effect(self.zero_stage, self.precision, self.sums)
        if self.precision == "fp16" and self.zero_stage == 0:
            raise ValueError("precision fp16 sums gradients in fp32, which zero_stage 0 does not; choose zero_stage 1")
        if reason := self.optimizer.refusal(self.zero_stage, self.precision, self.sums):
            raise ValueError(reason)
        self.deepspeed.require_none_of(self.optimizer.not_beside, f"optimizer {self.optimizer.kind}")
        return self

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.grow_at and self.schedule.steps:
            raise ValueError("grow_at and schedule.steps both say how long it is; leave one of them out")
        return self

    @model_validator(mode="after")
    def _sums_of_bf16(self) -> Self:
        if self.gradient_sums and self.precision != "bf16":
            raise ValueError(
                f"gradient_sums {self.gradient_sums} belongs to precision bf16, this is {self.precision}; leave it out"
            )
        return self


class MethodChoice(Strict):
    """A growth method by name, with options of its own: `fpi`, or `{name: lemon, depth: cancel}`. Which methods there
    are and which options each takes is known where growth is, and asked before the first stage runs."""

    model_config = ConfigDict(extra="allow")

    name: str = "lemon"

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


FIT = "-fit"
"""Behind an expansion's name: the stage in which its method is fitted."""
FORMER_OPTIONS = {"depth": "zero", "placement": "even", "noise": 1.0}
"""Options of LEMON that were keys of the stage, with the defaults that every recorded stage holds."""


class ExpandStage(Strict):
    """Expand an earlier stage's newest checkpoint into `model`."""

    kind: Literal["expand"]
    name: FolderName
    source: Place
    model: str
    method: MethodChoice = MethodChoice()
    fit: FitChoice | None = Field(None, description="of a learned method: how it is fitted; default: its defaults")
    optimizer_state: OptimizerState = Field(
        "reset",
        description="reset: it begins afresh; grow: as the weights do; asymmetric: kept on the source's entries, zero "
        "on new ones, which count steps of their own",
    )

    @property
    def origin(self) -> str:
        return self.source

    @property
    def fit_name(self) -> str:
        """The stage as which a learned method is fitted."""
        return f"{self.name}{FIT}"

    @model_validator(mode="before")
    @classmethod
    def _method_with_its_options(cls, stage: Any) -> Any:
        """`method: NAME` is short for `method: {name: NAME}`; what was an option of the stage is one of its method."""
        if not isinstance(stage, dict):
            return stage
        method = stage.get("method", {})
        if not isinstance(method, str | dict):
            return stage
        former = {key: stage[key] for key in FORMER_OPTIONS if key in stage and stage[key] != FORMER_OPTIONS[key]}
        options = {"name": method} if isinstance(method, str) else method
        kept = {key: value for key, value in stage.items() if key not in FORMER_OPTIONS}
        return {**kept, "method": {**former, **options}}


class FitStage(TrainStage):
    """The fit of an expansion by a learned method. No config has it: `Config.fit_of` derives it from the expansion. Its
    coefficients are trained as a model is, in a folder of their own."""

    kind: Literal["fit"] = "fit"  # type: ignore[assignment]
    source: Place
    method: MethodChoice
    dropout: float | None
    accept: bool = False
    target: str | None = None
    source_config: str | None = None
    activation_checkpointing: Literal[True] = True

    @property
    def origin(self) -> str:
        return self.source


Stage = Annotated[TrainStage | ExpandStage, Field(discriminator="kind")]


class Config(Strict):
    """A whole run."""

    name: FolderName
    seed: int = Field(0, ge=0)
    folder: Place = Field("runs/{name}", description="where the run lives; {name} is replaced")
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="workers on each node; auto: one per GPU, else 2"
    )
    max_time: Time | None = Field(
        None, description="save and stop with exit code 85 after so long, such as '12 hours'; start again to go on"
    )
    restarts: int = Field(
        0, ge=0, description="starts after faults in a row without a newer checkpoint; by `lemon run` alone, or --nodes"
    )
    node_timeout: Time = Field(
        "2 minutes", description="how long the nodes of --nodes MIN:MAX wait for those that are not needed"
    )
    hang: HangChoice = HangChoice()
    hash: Algorithm = Field(
        "blake3", description="by which the files of checkpoints are sealed; sha256 where a policy asks for it"
    )
    baseline: str | None = Field(
        None, description="the training from scratch that the report compares with; default: the one that ends best"
    )
    data: Data
    models: dict[str, ModelSizes] = Field(min_length=1)
    stages: list[Stage] = Field(min_length=1)

    def block_of(self, stage: "TrainStage | ExpandStage") -> int | None:
        """Tokens of a block that a stage reads; None of images."""
        if not isinstance(self.data, TextData):
            return None
        return (stage.data.block if isinstance(stage, TrainStage) else None) or self.data.block

    @property
    def longest_block(self) -> int | None:
        """Of the run's data and all stages, for which every model has positions; None of images."""
        if not isinstance(self.data, TextData):
            return None
        return max([self.data.block, *(self.block_of(stage) or 0 for stage in self.stages)])

    @property
    def path(self) -> Path:
        return Path(self.folder.replace("{name}", self.name))

    def stage(self, name: str) -> TrainStage | ExpandStage:
        """The stage called `name`. Raises UserError with the nearest name."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(f"no stage '{name}' in config '{self.name}'{nearest(name, [s.name for s in self.stages])}")

    def training_stage(self, name: str) -> TrainStage:
        """The training stage called `name`, which may be an expansion's fit. Raises UserError when there is none, or it
        is an expansion."""
        expansions = [stage for stage in self.stages if isinstance(stage, ExpandStage)]
        fitted = next((stage for stage in expansions if stage.fit_name == name), None)
        if fitted and name not in {stage.name for stage in self.stages}:
            return self.fit_of(fitted)
        stage = self.stage(name)
        if not isinstance(stage, TrainStage):
            training = [s.name for s in self.stages if isinstance(s, TrainStage)]
            raise UserError(
                f"stage '{name}' of config '{self.name}' is an expansion; its training stages: {', '.join(training)}"
            )
        return stage

    def fit_of(self, stage: ExpandStage) -> FitStage:
        """The stage in which the method of an expansion is fitted. What its keys leave open is as in the training stage
        behind it, and stays what it began with. Raises UserError where nothing says its batch."""
        fit, behind = stage.fit or FitChoice(), next(iter(self.continued_by(stage.name)), None)
        if not fit.steps:
            raise UserError(f"stages.{stage.name}.fit.steps: 0 fits nothing; its coefficients stay as they start")
        with placed(f"stages.{stage.name}"):
            usable_as_folder(stage.fit_name)
        begun = StageFolder(self.path / stage.fit_name).facts
        like = begun.settings if isinstance(begun, TrainFacts) else behind
        if fit.batch is None and like is None:
            raise UserError(f"stages.{stage.name}.fit.batch: no training stage behind it says how many; name the batch")
        shared = fit.model_dump(include=set(FitStage.model_fields) & set(FitChoice.model_fields))
        own = {key: getattr(stage, key) for key in ("source", "model", "method")}
        inherited = {"batch": fit.batch or getattr(like, "batch", None)}
        inherited["precision"] = fit.precision or ("bf16" if getattr(like, "precision", "fp32") == "bf16" else "fp32")
        if behind and like is behind:
            open_keys = (key for key in ("attention", "compile") if getattr(fit, key) == "auto")
            inherited |= {key: getattr(behind, key) for key in open_keys}
        inherited["matmul_precision"] = fit.matmul_precision or getattr(like, "matmul_precision", None)
        if inherited["precision"] == "bf16":
            inherited["gradient_sums"] = getattr(like, "gradient_sums", None)
        if fit.batch is None and like is behind:
            of_behind = getattr(behind, "micro_batch", None)
            inherited["micro_batch"] = fit.micro_batch or (None if of_behind == "auto" else of_behind)
        keys = {**shared, **own, **inherited, "name": stage.fit_name, "schedule": fit.schedule, "kind": "fit"}
        try:
            return FitStage.model_validate(keys)
        except ValidationError as error:  # what it inherits may not fit what is given
            raise UserError(f"stages.{stage.name}.fit: {explain(error, keys, FitStage)}") from error

    def continued_by(self, name: str) -> list[TrainStage]:
        """The training stages that go on from the stage `name`, at once or by way of expansions."""
        behind = [stage for stage in self.stages if stage.origin == name]
        return [
            reader
            for stage in behind
            for reader in ([stage] if isinstance(stage, TrainStage) else self.continued_by(stage.name))
        ]

    def trained_before(self, stage: TrainStage | ExpandStage) -> TrainStage | None:
        """The earlier training stage whose end a stage starts from, by way of expansions or at once; None where that is
        fresh weights, or a folder."""
        origin, place = stage.origin, [each.name for each in self.stages].index(stage.name)
        for each in reversed(self.stages[:place]):
            if each.name == origin and isinstance(each, TrainStage):
                return each
            origin = each.origin if each.name == origin else origin
        return None

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        if problems := list(stages_fit.problems(self)):
            raise ConfigProblems(problems)
        return self
