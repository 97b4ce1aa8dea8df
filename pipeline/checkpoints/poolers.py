"""Poolers of bare encoders: the files say whether there is one, whatever the config says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def remarks(stated: PretrainedConfig, read: PretrainedConfig, where: str = "config.json") -> dict[str, str]:
    """What to know of a model without a pooler whose class has one by itself, and of a pooler that the config denies,
    by the key of the config. stated: the config as it is written. read: as its files say. where: what is written."""
    from pipeline import models
    from pipeline.models.family import POOLER, has_pooler

    head = models.of_config(read).head(read)
    said, has = vars(stated).get(POOLER), has_pooler(read)
    if head.pooler is None or (has and said is not False):
        return {}
    if has:
        return {POOLER: f"{where} says {POOLER} false, and there is a pooler: it is kept, the result no longer says so"}
    options, denied = head.options(read), f"{where} says {POOLER} true, but " if said is True else ""
    arguments = ", ".join(f"{name}={value}" for name, value in options.items())
    return {
        POOLER: f"{denied}there is no pooler: the model is that of {head.class_name}.from_pretrained(…, {arguments}), "
        "and only its last_hidden_state is compared; without the argument transformers adds a pooler of random weights"
    }
