"""Saved models that are not as `save_pretrained` of today leaves them: windows of attention, rotary positions in older
keys, tied names that differ from their owners."""

import json
from pathlib import Path

import torch

from pipeline import models
from tests.helpers.checkpoints import change, saved
from tests.helpers.samples import sample

LONG = 64
"""Tokens: more than a probe has, and than the windows."""
TYPES = ["sliding_attention", "full_attention"]
WINDOW = 24
"""More tokens than a probe has."""
SLIDING = {"use_sliding_window": True, "sliding_window": WINDOW}
SCALED = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED["original_max_position_embeddings"] = 16
PLAIN = {"rope_type": "default"}
SOFTER = {"rope_type": "linear", "factor": 2.0}
FARTHER = {"rope_type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [2.0, 3.0], "rope_theta": 777.0}
"""Of heads of 4 numbers."""
MISREAD = {
    "modernbert, layers in no order": ("modernbert", {"layer_types": [TYPES[0], TYPES[1], TYPES[1], TYPES[0]]}),
    "modernbert, one kind scaled": (
        "modernbert",
        {"rope_parameters": {TYPES[1]: {**SOFTER, "rope_theta": 5e4}, TYPES[0]: {**PLAIN, "rope_theta": 300.0}}},
    ),
    "gemma3_text, windows scaled": (
        "gemma3_text",
        {"rope_parameters": {TYPES[1]: {**PLAIN, "rope_theta": 5e4}, TYPES[0]: {**SOFTER, "rope_theta": 300.0}}},
    ),
    "llama, longrope of another factor": (
        "llama",
        {"rope_parameters": {**FARTHER, "factor": 8.0, "original_max_position_embeddings": LONG // 2}},
    ),
}
"""Models that transformers 4 has no words for -> the variant, and the keys of its config."""
DIFFERENT = {
    "llama tied": "lm_head.weight",
    "qwen3 tied": "lm_head.weight",
    "gpt2": "lm_head.weight",
    "opt": "lm_head.weight",
    "bert": "cls.predictions.decoder.weight",
    "bert-pre-ln": "cls.predictions.decoder.bias",
    "roberta": "lm_head.decoder.bias",
    "xlm-roberta": "lm_head.decoder.weight",
}
"""Variant -> a tied name of it."""


def edit(folder: Path, **changes: object) -> Path:
    """Other keys in a config.json; `...` takes one away."""
    place = folder / "config.json" if folder.is_dir() else folder
    content = {**json.loads(place.read_text()), **changes}
    place.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))
    return folder


def mixed(folder: Path) -> Path:
    """A Qwen3 whose first layer has a window."""
    small = saved(folder, "qwen3", positions=LONG)
    return edit(small, layer_types=TYPES, use_sliding_window=True, sliding_window=WINDOW)


def stored_beside(folder: Path, variant: str, name: str, *, equal: bool = False) -> Path:
    """A saved model whose files hold the tied `name` as well, with other numbers or with the owner's."""
    owner = models.architecture_of(sample(variant)).aliases[name]

    def add(tensors: dict) -> None:
        other = torch.randn(tensors[owner].shape, generator=torch.Generator().manual_seed(3))
        tensors[name] = tensors[owner].clone() if equal else other * 0.3

    return change(saved(folder, variant), add)
