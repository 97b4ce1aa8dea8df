"""Layers of two kinds: the pattern that a list of them follows, and what transformers 4 is told of it."""

import pytest
from transformers import Gemma3TextConfig, ModernBertConfig, PretrainedConfig

from pipeline import models
from pipeline.models.layer_types import FULL_ATTENTION as FULL
from pipeline.models.layer_types import SLIDING_ATTENTION as SLIDING

LINEAR, UNSCALED = {"rope_type": "linear", "factor": 2.0}, {"rope_type": "default"}
LETTERS = {"F": FULL, "S": SLIDING}
CLASSES: dict[str, type[PretrainedConfig]] = {"modernbert": ModernBertConfig, "gemma3_text": Gemma3TextConfig}
KEYS = {"modernbert": "global_attn_every_n_layers", "gemma3_text": "sliding_window_pattern"}


def config_of(family: str, types: str, stated: int | None = None, **more: object) -> PretrainedConfig:
    """types: a letter for each layer."""
    named = {} if stated is None else {KEYS[family]: stated}
    listed = [LETTERS[letter] for letter in types]
    return CLASSES[family](num_hidden_layers=len(types), layer_types=listed, **named, **more)


@pytest.mark.parametrize(
    "family, types, stated, found",
    [
        ("modernbert", "FSSFSS", None, 3),
        ("modernbert", "FSFS", None, 2),
        ("modernbert", "FS", None, 3),
        ("modernbert", "FS", 5, 5),
        ("modernbert", "FSFS", 5, 2),
        ("modernbert", "FF", 3, 1),
        ("modernbert", "SF", 2, None),
        ("modernbert", "SS", None, None),
        ("gemma3_text", "SSSSSFS", None, 6),
        ("gemma3_text", "SS", None, 6),
        ("gemma3_text", "SS", 4, 4),
        ("gemma3_text", "SFSF", None, 2),
        ("gemma3_text", "SSFSSF", 2, 3),
        ("gemma3_text", "FSFS", 2, None),
        ("gemma3_text", "SSSSSSS", 6, None),
    ],
)
def test_the_stated_period_where_layers_follow_it_else_the_least(family, types, stated, found):
    config = config_of(family, types, stated)
    assert models.architecture_of(config).stacks[0].period == (found or 1)
    assert models.of_config(config).pattern.older_keys(config)[KEYS[family]] == found


@pytest.mark.parametrize("types, period", [("SFSF", 2), ("S", 2), ("FFSS", 1)])
def test_gemma_2_has_two_by_turns_unless_its_list_says_otherwise(types, period):
    config = models.family("gemma2").config_class(num_hidden_layers=len(types), layer_types=[LETTERS[x] for x in types])
    assert models.architecture_of(config).stacks[0].period == period
    assert not models.of_config(config).pattern.older_keys(config) and not models.misread(config)


def test_a_number_that_none_can_be_is_not_followed():
    config = config_of("modernbert", "FSSF")
    for stated in (0, -3, "3"):
        config.update({KEYS["modernbert"]: stated})
        assert models.architecture_of(config).stacks[0].period == 3


@pytest.mark.parametrize(
    "family, everywhere, in_windows, told",
    [
        ("modernbert", UNSCALED, UNSCALED, None),
        ("modernbert", LINEAR, LINEAR, LINEAR),
        ("modernbert", LINEAR, UNSCALED, ...),
        ("modernbert", UNSCALED, LINEAR, ...),
        ("gemma3_text", UNSCALED, UNSCALED, None),
        ("gemma3_text", {**UNSCALED, "type": "default"}, {**UNSCALED, "partial_rotary_factor": 1.0}, None),
        ("gemma3_text", LINEAR, UNSCALED, LINEAR),
        ("gemma3_text", LINEAR, LINEAR, ...),
        ("gemma3_text", UNSCALED, LINEAR, ...),
    ],
)
def test_rotary_positions_that_transformers_4_scales_otherwise_are_said(family, everywhere, in_windows, told):
    """...: it cannot be told."""
    bases = {FULL: {**everywhere, "rope_theta": 5e5}, SLIDING: {**in_windows, "rope_theta": 300.0}}
    config = config_of(family, "FSSF" if family == "modernbert" else "SSSSSF", rope_parameters=bases)
    lines = models.misread(config)
    assert len(lines) == (told is ...) and all("scales the rotary positions" in line for line in lines)
    older = models.of_config(config).pattern.older_keys(config)
    assert older["rope_scaling"] == (None if told is ... else told)
    assert {5e5, 300.0} <= {value for value in older.values() if isinstance(value, float)}
