"""Poolers of bare encoders: the files say whether there is one, whatever the config says."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def remarks(read: PretrainedConfig) -> dict[str, str]:
    """What to know of a model without a pooler whose class has one by itself, by the key of the config that says so.
    read: the config as its files say."""
    from pipeline import models
    from pipeline.models.family import POOLER

    head = models.of_config(read).head(read)
    if not (options := head.options(read)):
        return {}
    arguments = ", ".join(f"{name}={value}" for name, value in options.items())
    return {
        POOLER: f"there is no pooler: the model is that of {head.class_name}.from_pretrained(…, {arguments}), and only "
        "its last_hidden_state is compared; without the argument transformers adds a pooler of random weights"
    }
