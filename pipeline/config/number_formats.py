"""The number formats of a training stage that are not its precision: in which gradients are summed, and what float32
matrix products are made of. Where a config says nothing, a stage that was begun keeps those it began with."""

from typing import TYPE_CHECKING, Literal

from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import NUMBER_FORMATS, TrainFacts

if TYPE_CHECKING:
    from pipeline.config.schema import Config, ExpandStage, TrainStage

Precision = Literal["fp32", "bf16", "bf16-autocast", "fp16"]
IN_16_BITS = ("bf16", "fp16")
"""Precisions in which weights have 16 bits, beside which the optimizer has them in float32."""
GradientSums = Literal["fp32", "bf16"]
MatmulPrecision = Literal["highest", "high", "medium"]
"""As torch.set_float32_matmul_precision takes it."""
BY_DEFAULT: MatmulPrecision = "highest"


def words(stage: "TrainStage") -> str:
    """All number formats of a stage, for the log."""
    sums = f", gradients summed in {stage.sums}" if stage.sums else ""
    return f"{stage.precision}{sums}, matmul_precision {stage.products}"


def as_begun(config: "Config") -> "Config":
    """The config, in which the stages that have begun say theirs. Raises UserError for damaged records."""
    return config.model_copy(update={"stages": [_as_begun(config, stage) for stage in config.stages]})


def _as_begun(config: "Config", stage: "TrainStage | ExpandStage") -> "TrainStage | ExpandStage":
    if stage.kind == "expand":
        return stage
    facts = StageFolder(config.path / stage.name).facts
    if not isinstance(facts, TrainFacts):
        return stage
    kept = {key: getattr(facts.settings, key) for key in NUMBER_FORMATS if getattr(stage, key) is None}
    if stage.precision != "bf16":
        kept.pop("gradient_sums", None)
    return stage.model_copy(update=kept)
