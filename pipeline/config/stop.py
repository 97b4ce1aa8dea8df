"""The section `stop` of a training stage: the evaluation at which it ends before its schedule does."""

from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.records.folder_names import FolderName
from pipeline.records.strict import Strict

Measure = Literal["eval_loss", "top1"]


def _number(value: Any) -> Any:
    """YAML reads `1e-3` as text."""
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value


Loss = Annotated[Annotated[float, Field(gt=0)] | FolderName, BeforeValidator(_number)]
Share = Annotated[Annotated[float, Field(gt=0, le=1)] | FolderName, BeforeValidator(_number)]


class Stop(Strict):
    """One target. The name of an earlier training stage stands for what its last evaluation measured. Not part of a
    stage's fingerprint: it may change when a stage goes on."""

    eval_loss: Loss | None = Field(None, description="at or below it, in nats; or an earlier training stage")
    top1: Share | None = Field(None, description="at or above it, 0 to 1, images only; or such a stage")

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.eval_loss is None) == (self.top1 is None):
            raise ValueError("needs one of eval_loss and top1, such as {eval_loss: 2.5}")
        return self

    @property
    def measure(self) -> Measure:
        return "top1" if self.eval_loss is None else "eval_loss"

    @property
    def value(self) -> float | str:
        """A number, or the name of a stage."""
        value: float | str = getattr(self, self.measure)
        return value
