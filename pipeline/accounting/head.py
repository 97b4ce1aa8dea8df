"""At how many positions of a sequence the head of a language model runs, which FLOPs are counted by.

Masked models are trained with it at the positions that they predict alone; papers often count all ("dense").
"""

from typing import Any

from transformers import PretrainedConfig

from pipeline import models
from pipeline.config.data import TextData, predicted
from pipeline.errors import UserError

TRAINED: float = TextData.model_fields["mask"].default
"""The share of the positions that a masked model predicts, where a config says nothing."""


def at_share(share: float, tokens: int) -> int:
    """Positions of a sequence of so many tokens: all of them by a share of 1, else as many as training predicts by that
    `data.mask`."""
    return tokens if share == 1 else predicted(share, tokens)


def with_share(facts: dict[str, Any], share: float | None) -> dict[str, Any]:
    """The facts of data as if the heads of masked models ran at this share of the positions; None: as they are."""
    return facts if share is None else {**facts, "scored": at_share(share, facts["block"])}


def require_share(config: PretrainedConfig, share: float | None) -> None:
    """Raises UserError where a model has no head that could run at this share of the positions."""
    head, family = models.of_config(config).head(config).name, models.of_config(config).name
    if share is None or head == "masked-lm" or (head == "causal-lm" and share == 1):
        return
    if head == "causal-lm":
        raise UserError(f"--head-positions {share:g}: a '{family}' predicts at every position; leave it out, or give 1")
    raise UserError(f"--head-positions {share:g}: this '{family}' ({head}) has no language-model head; leave it out")
