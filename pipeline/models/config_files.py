"""Reading a config.json, and what is written of a config for transformers 4 and 5."""

import copy
import json
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from pipeline.config.limits import MOST_LAYERS, MOST_UNITS
from pipeline.errors import UserError, one_line, placed
from pipeline.models import rotary
from pipeline.models.config_keys import ROPE, ROPE_AS_WRITTEN, ROPE_BEFORE_5
from pipeline.models.family import Family
from pipeline.models.registry import FAMILIES, architecture_of, of_config, unsupported_model
from pipeline.records.run_folder import read_json


def recognise(content: dict[str, Any], where: str) -> tuple[Family, PretrainedConfig]:
    """The family and config of a Hugging Face config.json's content. Raises UserError for a foreign one."""
    kind = content.get("model_type")
    match = next((family for family in FAMILIES.values() if family.config_class.model_type == kind), None)
    if match is None:
        raise _foreign(content, where)
    try:
        said = copy.deepcopy(content)  # the config's class changes what it is given
        said = {key: value for key, value in said.items() if value is not None or key not in match.keys.undeclared}
        written = {key: content[key] for key in ROPE_BEFORE_5 if key in content}
        if written and ROPE in match.keys.function and ROPE_AS_WRITTEN not in content:  # of a file, not of a config
            said[ROPE_AS_WRITTEN] = written
        config = match.config_class.from_dict(said)
    except Exception as error:  # transformers and its strict dataclasses raise many kinds for wrong values
        raise UserError(f"{where}: not a config of '{kind}': {one_line(error)}") from error
    _require_possible_sizes(match, config, where)
    return match, config


def _foreign(content: dict[str, Any], where: str) -> UserError:
    """What to say of a config of no supported family."""
    if content.get("model_type"):
        return unsupported_model(content, where)
    if "architecture" in content:
        timm = f"a config of timm ('{content['architecture']}'), which is not read"
        return UserError(f"{where}: {timm}; use the same model's files for transformers")
    return UserError(f"{where}: it names no model_type: add it; known: {', '.join(sorted(FAMILIES))}")


def _require_possible_sizes(match: Family, config: PretrainedConfig, where: str) -> None:
    """Raises UserError for sizes that transformers takes and no model can have."""
    for key, value in ((key, getattr(config, key, None)) for key in match.keys.sizes):
        least = match.least(key)
        if value is not None and (not isinstance(value, int) or value < least):
            raise UserError(f"{where}: {key} {value!r} is impossible; a size is a whole number of at least {least}")
    with placed(where):
        architecture = architecture_of(config)
    sizes, layers = {space.size for space in architecture.spaces.values()}, sum(s.layers for s in architecture.stacks)
    if layers > MOST_LAYERS:
        raise UserError(f"{where}: {layers} layers are more than any model has; at most {MOST_LAYERS} are taken")
    if max(sizes) > MOST_UNITS:
        raise UserError(f"{where}: a size of {max(sizes)} is more than any model has; at most {MOST_UNITS} are taken")
    heads_share_the_width = "head_dim" not in match.keys.sizes or not getattr(config, "head_dim", None)
    if min(sizes) < 1 or (heads_share_the_width and config.hidden_size % config.num_attention_heads):
        raise UserError(
            f"{where}: impossible sizes: hidden_size {config.hidden_size}, num_attention_heads "
            f"{config.num_attention_heads}, smallest space {min(sizes)}"
        )


def config_text(config: PretrainedConfig, dtype: str = "float32") -> str:
    """The content of config.json, with the class name that any reader of Hugging Face files knows, the dtype it loads
    in, and rotary positions and layers also in the keys of transformers 4."""
    content = json.loads(config.to_json_string(use_diff=False))
    content.pop("transformers_weights", None)  # the name of the source's file
    if ROPE in content:
        for key in (ROPE_AS_WRITTEN, *ROPE_BEFORE_5):
            content.pop(key, None)
        content |= {ROPE: rotary.stated(config)} | rotary.spelled(config, older_keys(config))
    stated = {"architectures": [of_config(config).head(config).class_name], "dtype": dtype}
    return json.dumps(content | stated, indent=2, sort_keys=True) + "\n"


def older_keys(config: PretrainedConfig) -> dict[str, Any]:
    """What a written config says of rotary positions and of kinds of layers in keys that transformers 4 alone reads;
    None: what it has no word for."""
    pattern = of_config(config).pattern
    return rotary.older_keys(config) | (pattern.older_keys(config) if pattern else {})


def misread(config: PretrainedConfig) -> tuple[str, ...]:
    """What transformers 4 makes otherwise of a config that is written, in words."""
    pattern = of_config(config).pattern
    return (*(pattern.misread(config) if pattern else ()), *rotary.misread(config, older_keys(config)))


def read_config(path: Path) -> tuple[Family, PretrainedConfig]:
    """The family and config in a config.json. Raises UserError."""
    return recognise(read_json(path), str(path))
