"""The families of models, by name. To add one: a file with a table, and its line here."""

import copy
import json
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.axes import Table
from pipeline.errors import UserError, nearest
from pipeline.models import bert, bert_pre_ln, vit
from pipeline.models.family import Facts, Family, resized

FAMILIES: dict[str, Family] = {module.FAMILY.name: module.FAMILY for module in (bert_pre_ln, bert, vit)}


def family(name: str) -> Family:
    """The family called `name`. Raises UserError with the nearest name."""
    if name not in FAMILIES:
        raise UserError(f"unknown model family '{name}'{nearest(name, FAMILIES)}")
    return FAMILIES[name]


def of_config(config: PretrainedConfig) -> Family:
    """The family that a config object belongs to."""
    return next(known for known in FAMILIES.values() if known.config_class is type(config))


def table(config: PretrainedConfig) -> Table:
    """The architecture of a config."""
    return of_config(config).table(config)


def of_model(model: PreTrainedModel) -> Family:
    return of_config(model.config)


def recognise(content: dict, where: str) -> tuple[Family, PretrainedConfig]:
    """The family and config of a Hugging Face config.json's content. Raises UserError for a foreign one."""
    kind = content.get("model_type") if isinstance(content, dict) else None
    known = next((family for family in FAMILIES.values() if family.config_class.model_type == kind), None)
    if known is None:
        raise UserError(f"{where}: model_type '{kind}' is no family of ours{nearest(str(kind), FAMILIES)}")
    try:
        config = known.config_class.from_dict(content)
        sizes = {space.size for space in known.table(config).spaces.values()}
    except Exception as error:  # transformers and its strict dataclasses raise many kinds for wrong values
        raise UserError(f"{where}: not a config of '{kind}': {' '.join(str(error).split())[:160]}") from error
    if min(sizes) < 1 or config.hidden_size % config.num_attention_heads:
        raise UserError(f"{where}: impossible sizes: hidden_size {config.hidden_size}, num_attention_heads {config.num_attention_heads}, smallest space {min(sizes)}")
    return known, config


def config_text(config: PretrainedConfig) -> str:
    """The content of config.json, with the architecture any reader of Hugging Face files knows."""
    content = json.loads(config.to_json_string(use_diff=False))
    return json.dumps({**content, "architectures": [of_config(config).architecture]}, indent=2, sort_keys=True) + "\n"


def read_config(path: Path) -> tuple[Family, PretrainedConfig]:
    """The family and config in a config.json. Raises UserError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: cannot read the model's config ({error})") from error
    return recognise(content, str(path))


def build(config: PretrainedConfig, seed: int = 0, attention: str = "sdpa", device: str = "cpu") -> PreTrainedModel:
    """A freshly initialised model; the same seed gives the same weights. `device='meta'` gives names and shapes only."""
    config = copy.deepcopy(config)  # transformers shares and mutates config objects
    config._attn_implementation = attention
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return of_config(config).model_class(config)


__all__ = ["FAMILIES", "Facts", "Family", "build", "config_text", "family", "of_config", "of_model", "read_config", "recognise", "resized", "table"]
