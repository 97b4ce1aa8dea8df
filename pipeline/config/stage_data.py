"""The section `data` of a training stage: which samples it reads, and how long they are."""

from pydantic import ConfigDict, Field

from pipeline.config.limits import MOST_UNITS
from pipeline.records.strict import Strict


class StageData(Strict):
    """Its samples among those of the run's data. Another block is another cut of the same text."""

    model_config = ConfigDict(serialize_by_alias=True)

    continues: bool = Field(
        False,
        alias="continue",
        description="begin behind the samples that the weights were trained on before; default: with the first",
    )
    block: int | None = Field(
        None, ge=8, le=MOST_UNITS, description="text only: tokens per block, [CLS] and [SEP] included"
    )
