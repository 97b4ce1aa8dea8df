"""The families of models: their registry, their configs, and models made of these. To add a family: a file with its
architecture, and its line in `registry.py`."""

from pipeline.models.building import attention_of, build, fill
from pipeline.models.config_files import config_text, misread, read_config, recognise
from pipeline.models.config_keys import LAYER_TYPES, LAYER_TYPES_STATED, POSITIONS
from pipeline.models.family import Family, Head, has_pooler
from pipeline.models.fresh_configs import Facts
from pipeline.models.registry import (
    FAMILIES,
    architecture_of,
    as_stored,
    drops_branches,
    family,
    family_of,
    function_keys,
    initializer_range,
    is_causal,
    of_config,
    published_names,
    reads_pieces,
    trained,
)
from pipeline.models.rotary import ropes, rotation, rotation_counts_positions

__all__ = [
    "FAMILIES",
    "LAYER_TYPES",
    "LAYER_TYPES_STATED",
    "POSITIONS",
    "Facts",
    "Family",
    "Head",
    "architecture_of",
    "as_stored",
    "attention_of",
    "build",
    "config_text",
    "drops_branches",
    "family",
    "family_of",
    "fill",
    "function_keys",
    "has_pooler",
    "initializer_range",
    "is_causal",
    "misread",
    "of_config",
    "published_names",
    "read_config",
    "reads_pieces",
    "recognise",
    "ropes",
    "rotation",
    "rotation_counts_positions",
    "trained",
]
