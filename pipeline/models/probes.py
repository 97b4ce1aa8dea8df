"""Random inputs that a model is run on, and how many tokens one has."""

from typing import Any

import torch
from torch import Generator, Tensor
from transformers import PretrainedConfig

from pipeline.models.fresh_configs import Facts

Inputs = dict[str, Tensor]
"""The keyword arguments of a model's forward."""


PROBE_TOKENS = 16
"""Tokens of a probe at most: rows of a position table all go through the same map, and more tokens tell two functions
apart no better."""


def text_positions(config: PretrainedConfig, facts: Facts) -> dict[str, int]:
    return {"token": facts["block"], "scored": facts["scored"], "sequence": 1}


def causal_positions(config: PretrainedConfig, facts: Facts) -> dict[str, int]:
    """The head runs at every position."""
    return text_positions(config, {**facts, "scored": facts["block"]})


def text_probe(config: Any, generator: Generator, samples: int, reserved: int = 0) -> Inputs:
    """Token ids and attention mask (samples, S): the first sequence has full length, the others end in padding.

    reserved: rows of the position table that no token takes."""
    length = min(config.max_position_embeddings - reserved, PROBE_TOKENS)
    lengths = torch.randint(max(1, length // 2), length + 1, (samples,), generator=generator)
    lengths[0] = length
    return {
        "input_ids": torch.randint(config.vocab_size, (samples, length), generator=generator),
        "attention_mask": (torch.arange(length) < lengths[:, None]).long(),
    }


def segmented_text_probe(config: Any, generator: Generator, samples: int, reserved: int = 0) -> Inputs:
    """As `text_probe`, every token with a random segment, for models that have a table of token types."""
    inputs = text_probe(config, generator, samples, reserved)
    if config.type_vocab_size:
        shape = inputs["input_ids"].shape
        inputs["token_type_ids"] = torch.randint(config.type_vocab_size, shape, generator=generator)
    return inputs


def image_probe(config: Any, generator: Generator, samples: int) -> Inputs:
    """Random pixels (samples, C, H, W), float64."""
    shape = (samples, config.num_channels, config.image_size, config.image_size)
    return {"pixel_values": torch.randn(shape, generator=generator, dtype=torch.float64)}
