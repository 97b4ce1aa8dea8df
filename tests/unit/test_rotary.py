"""What a written config says of rotary positions in keys of transformers 4, by what its file said of them."""

import json

import pytest

from pipeline import models
from tests.helpers.samples import sample

LONG = {"short_factor": [1.0, 1.0], "long_factor": [2.0, 3.0]}
OLDER = ("rope_theta", "rope_scaling", "partial_rotary_factor")


def written(variant: str, keys: dict) -> tuple[dict, tuple[str, ...]]:
    """A file with those keys of rotary positions alone -> what is written of them for transformers 4, and what is said.
    Written once more it is the same."""
    content = json.loads(models.config_text(sample(variant)))
    content = {key: value for key, value in content.items() if key not in (*OLDER, "rope_parameters")} | keys
    config = models.recognise(content, "x")[1]
    again = models.recognise(json.loads(models.config_text(config)), "x")[1]
    assert models.config_text(again) == models.config_text(config) and models.rotation(again) == models.rotation(config)
    found = json.loads(models.config_text(config))
    return {key: found[key] for key in OLDER if key in found}, models.misread(config)


@pytest.mark.parametrize(
    ("variant", "keys"),
    [
        ("llama", {"rope_theta": 5e5}),
        ("llama", {"rope_theta": 5e5, "rope_scaling": None}),
        ("llama", {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ("qwen2", {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}),
        ("qwen2", {"rope_theta": 1e6, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
        ("phi3", {"rope_theta": 1e4, "rope_scaling": {"type": "longrope", **LONG}}),
        ("phi3", {"rope_theta": 1e4, "partial_rotary_factor": 0.5}),
    ],
)
def test_older_keys_stay_in_the_words_of_the_file(variant, keys):
    assert written(variant, keys) == (keys, ())


@pytest.mark.parametrize(
    ("variant", "rope", "expected"),
    [
        ("llama", {"rope_type": "default", "rope_theta": 5e5}, {"rope_theta": 5e5}),
        (
            "mistral",
            {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
            {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        ),
        (
            "phi3",
            {"rope_type": "longrope", **LONG, "rope_theta": 1e4, "partial_rotary_factor": 1.0},
            {"rope_theta": 1e4, "rope_scaling": {"type": "longrope", **LONG}},
        ),
        (
            "phi3",
            {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
    ],
)
def test_what_transformers_5_saved_is_said_in_older_keys_too(variant, rope, expected):
    assert written(variant, {"rope_parameters": rope}) == (expected, ())


@pytest.mark.parametrize(
    ("older", "key"),
    [({"rope_theta": 1e4}, "rope_theta"), ({"rope_theta": 1e6, "partial_rotary_factor": 0.5}, "partial_rotary_factor")],
)
def test_what_contradicts_transformers_5_is_corrected_and_said(older, key):
    rope = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1.0}
    found, said = written("phi3", {"rope_parameters": rope, **older})
    assert found == {"rope_theta": 1e6} and len(said) == 1 and f"says {key} {older[key]}" in said[0]


def test_a_number_of_positions_that_is_null_is_the_models_own():
    """As transformers 5 takes it where it builds a model."""
    rope = {"rope_type": "longrope", **LONG, "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": None}
    found, said = written("llama", {"rope_parameters": rope})
    assert found["rope_scaling"]["original_max_position_embeddings"] is None and said == ()


def test_a_model_without_rotary_positions_has_no_such_keys():
    assert written("bert", {}) == ({}, ())
