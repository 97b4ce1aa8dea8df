"""The models of a run, as its config describes them."""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.config.limits import MOST_LAYERS, MOST_UNITS
from pipeline.records.strict import Strict


def _none_of_zero(rate: float | None) -> float | None:
    return rate or None


class ModelSizes(Strict):
    """The sizes of a model that the config decides; vocabulary, positions and classes follow from the prepared data."""

    family: str
    layers: int = Field(ge=0, le=MOST_LAYERS)
    hidden: int = Field(ge=1, le=MOST_UNITS)
    heads: int = Field(ge=1)
    kv_heads: int | None = Field(
        None, ge=1, description="heads of keys and values, where groups share them; default: heads"
    )
    head_dim: int | None = Field(
        None,
        ge=1,
        le=MOST_UNITS,
        description="size of a head, where heads need not share hidden; default hidden / heads",
    )
    mlp: int | None = Field(None, ge=1, le=MOST_UNITS, description="hidden units of the MLP; default 4 * hidden")
    tied: bool | None = Field(
        None, description="causal models only: the head is the token embedding; default: as the family has it"
    )
    rope_theta: float | None = Field(None, gt=0, description="base of rotary positions; default 10,000")
    patch: int | None = Field(None, ge=1, description="images only: side of a patch, pixels")
    dropout: float = Field(0.0, ge=0, lt=1, description="of every kind that the family has")
    drop_path: Annotated[float | None, AfterValidator(_none_of_zero)] = Field(
        None,
        ge=0,
        lt=1,
        description="stochastic depth: rate of the last layer's branches, growing from 0 at the first; of dinov2 every "
        "layer's; default: 0, none",
    )
    eps: float = Field(1e-12, gt=0, description="epsilon of the norms")
    init: float = Field(
        0.02, gt=0, description="standard deviation of initial weights; narrow models learn faster with a larger one"
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.head_dim is None and self.hidden % self.heads:
            raise ValueError(
                f"hidden {self.hidden} is not a multiple of heads {self.heads}; choose heads that divide it"
            )
        return self

    @property
    def mlp_units(self) -> int:
        return self.mlp or 4 * self.hidden
