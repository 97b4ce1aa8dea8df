"""stage.json: what a stage is, its sizes and settings, where it came from, whether it is finished."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.records.folder_names import FolderName
from pipeline.records.formats import FORMAT, Recorded, explained, require_readable

NUMBER_FORMATS = ("gradient_sums", "matmul_precision")
"""Settings that records before version 0.3.0 lack, where they followed from others."""
OptimizerKernel = Literal["default", "fused"]
"""default: as torch chooses, one operation after another; fused: all of an update in one kernel."""


class TrainSettings(BaseModel):
    """How a stage is trained; batch: samples per step over all ranks, micro_batch: per rank and pass.
    activation_checkpointing: of all layers, or of the first of every so many. attention, compile: what was chosen where
    the stage began. block: tokens of a sample, where that is not the block of the run's data. image_draws: version of
    what is drawn for an augmented image (data/augment.py). gradient_sums: of precision bf16, in which gradients are
    summed. matmul_precision: of float32 products, as torch calls it. deepspeed: keys of DeepSpeed's config that the
    stage adds. optimizer_kernel: what computes the updates; torch's default, where a record names none."""

    model_config = ConfigDict(frozen=True, extra="allow")

    batch: int
    micro_batch: int
    precision: str
    gradient_sums: str | None = None
    matmul_precision: str | None = None
    zero_stage: int
    deepspeed: dict[str, Any] = {}
    world_size: int
    optimizer: dict[str, Any]
    optimizer_kernel: OptimizerKernel = "default"
    activation_checkpointing: bool | int
    seed: int
    attention: str = "sdpa"
    block: int | None = None
    image_draws: int = 1
    compile: bool = False


class StepFlops(BaseModel):
    """FLOPs of one optimizer step. recompute: what activation checkpointing adds; make: of making the weights, where
    they are not what is trained; optimizer: of the update itself, where it takes matrix products (Muon)."""

    model_config = ConfigDict(frozen=True)

    train: int
    recompute: int
    make: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        return self.train + self.recompute + self.make + self.optimizer


class StartFacts(BaseModel):
    """One start of a training stage, which went on from `step`: with what, on what, by which versions."""

    model_config = ConfigDict(frozen=True, extra="allow")

    step: int
    settings: TrainSettings
    flops_per_step: StepFlops
    device: str
    versions: dict[str, str]

    @model_validator(mode="before")
    @classmethod
    def _with_number_formats(cls, content: Any) -> Any:
        return _with_number_formats(content)


class EarlierFacts(BaseModel):
    """What version 0.2.0 recorded in the place of starts: what was true until the stage was continued at `until_step`;
    None: the same as afterwards."""

    until_step: int
    settings: TrainSettings | None = None
    flops_per_step: StepFlops | None = None
    device: str | None = None
    versions: dict[str, str] | None = None


class CommonFacts(Recorded):
    """What every stage records. model: its name in the config; origin: the stage or folder that it started from, None
    for fresh weights; fingerprint: the settings that decide its numbers."""

    name: FolderName
    model: str
    family: str
    sizes: dict[str, int]
    parameters: int
    origin: str | None
    versions: dict[str, str]
    fingerprint: dict[str, Any]
    status: Literal["running", "finished"] = "running"


class ReachedTarget(BaseModel):
    """The evaluation that ended a stage. value: what it measured, a loss in nats or a share from 0 to 1; flops: of the
    stage's training until then."""

    model_config = ConfigDict(frozen=True)

    step: int
    measure: Literal["eval_loss", "top1"]
    target: float
    value: float
    flops: int

    @property
    def words(self) -> str:
        """Such as `evaluation loss 2.3071 reached its target 2.31`."""
        if self.measure == "top1":
            return f"top-1 accuracy {100 * self.value:.2f} % reached its target {100 * self.target:.4g} %"
        return f"evaluation loss {self.value:.4f} reached its target {self.target:.6g}"


class TrainFacts(CommonFacts):
    """A training stage, or the fit of a growth method. start: the checkpoint that it began from; schedule: resolved to
    steps; device: in words; coefficients: of a fit, how many; reached: the target that ended it, if one did;
    first_sample: the number of the first one that it reads. settings, flops_per_step, device, versions: those of the
    last of its starts."""

    kind: Literal["train", "fit"] = "train"
    start: str | None
    steps: int
    schedule: dict[str, Any]
    settings: TrainSettings
    flops_per_step: StepFlops
    samples_per_step: int
    tokens_per_step: int
    device: str
    starts: tuple[StartFacts, ...] = ()
    coefficients: int | None = None
    first_sample: int = 0
    reached: ReachedTarget | None = None

    @property
    def end(self) -> int:
        """The step behind which it ends, or has ended."""
        return self.reached.step if self.reached else self.steps

    @model_validator(mode="before")
    @classmethod
    def _with_starts(cls, content: Any) -> Any:
        """Facts of version 0.2.0 and before have none."""
        content = _with_number_formats(content)
        if not isinstance(content, dict) or "starts" in content:
            return content
        others = {key: value for key, value in content.items() if key != "earlier"}
        return {**others, "starts": _starts(content)}

    def start_of(self, step: int) -> StartFacts:
        """The start whose step number `step` counts, the first being 1: the last one that went on from before it."""
        return next((start for start in reversed(self.starts) if start.step < step), self.starts[0])


OptimizerState = Literal["reset", "grow", "asymmetric"]
"""What becomes of it in an expansion: it begins afresh, grows as the weights do, or is kept where the source's entries
lie and begins at zero elsewhere."""


NEW_ENTRIES = "lemon_new_entries"
"""Of what a training keeps in its checkpoints beside tensors (DeepSpeed's client state): the growths that its optimizer
state has come through (growth/new_entries.py)."""


class ExpandFacts(CommonFacts):
    """An expansion. layout: that of the checkpoint it writes; config_change: what it changes in the model's config;
    verification: what was measured, None before that; fit: what fitting a learned method was and has cost."""

    kind: Literal["expand"] = "expand"
    method: str
    method_options: dict[str, Any]
    optimizer_state: OptimizerState
    lossless: bool
    config_change: dict[str, Any]
    layout: dict[str, Any]
    verification: dict[str, Any] | None = None
    fit: dict[str, Any] | None = None


OF_A_START = ("settings", "flops_per_step", "device", "versions")
"""The facts of a training stage that each of its starts has of its own."""


def _starts(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What facts without starts tell of them: those behind which something was another."""
    earlier = TypeAdapter(list[EarlierFacts]).validate_python(content.get("earlier") or [])
    begins = [0, *(before.until_step for before in earlier)]
    starts = [{key: content[key] for key in OF_A_START if key in content} | {"step": begins[-1]}]
    for begin, before in zip(reversed(begins[:-1]), reversed(earlier), strict=True):
        known = before.model_dump(include=set(OF_A_START), exclude_none=True)
        starts.insert(0, {**starts[0], **known, "step": begin})
    return starts


def _with_number_formats(content: Any) -> Any:
    """Facts of a start, with what those before version 0.3.0 do not say: gradients were summed in the training's own
    precision, and GPUs made float32 products of TF32 ("high")."""
    settings = content.get("settings") if isinstance(content, dict) else None
    if not isinstance(settings, dict) or settings.get("matmul_precision") is not None:
        return content
    on_cpu = str(content.get("device", "")).startswith("CPU")
    sums = {"gradient_sums": "bf16"} if settings.get("precision") == "bf16" else {}
    formats = {**sums, "matmul_precision": "highest" if on_cpu else "high"}
    return {**content, "settings": {**settings, **formats}}


StageFacts = TrainFacts | ExpandFacts
_FACTS: TypeAdapter[StageFacts] = TypeAdapter(Annotated[StageFacts, Field(discriminator="kind")])


def parse(path: Path, content: dict[str, Any]) -> StageFacts:
    """The facts in `content`, read from `path`. Raises UserError for a newer format, or when they are incomplete."""
    if isinstance(content.get("format", {}), dict):  # format 1 had no number; an expansion kept its layout here
        content = _upgraded(content)
    require_readable(path, content["format"])
    try:
        return _FACTS.validate_python(content)
    except ValidationError as error:
        raise UserError(
            f"{path}: not the facts of a stage ({explained(error)}); the file is damaged, restore it"
        ) from error


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """Facts of format 1 as format 2 has them."""
    if content.get("kind") != "expand":
        return {**content, "format": FORMAT}
    method_options = {key: content[key] for key in ("depth", "placement", "noise") if key in content}
    others = {key: value for key, value in content.items() if key not in method_options}
    defaults = {"optimizer_state": "reset", "config_change": {}}
    return {**defaults, **others, "method_options": method_options, "layout": content.get("format"), "format": FORMAT}
