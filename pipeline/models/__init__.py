"""The families of models, by name. To add one: a file with its architecture, and its line here."""

import copy
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.config.limits import MOST_LAYERS, MOST_UNITS
from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError, nearest, one_line, placed
from pipeline.models import drop_path, plain_attention, rotary, unsupported
from pipeline.models.architecture import Architecture
from pipeline.models.config_keys import (
    COMPARED_APART,
    DROP_PATH_RATE,
    LAYER_TYPES,
    LAYER_TYPES_STATED,
    POSITIONS,
    ROPE,
    ROPE_AS_WRITTEN,
    ROPE_BEFORE_5,
)
from pipeline.models.families import (
    bert,
    bert_pre_ln,
    dinov2,
    distilbert,
    gemma,
    gpt2,
    llama,
    modernbert,
    opt,
    qwen,
    vit,
)
from pipeline.models.family import Family, Head, OptionalSize, has_pooler
from pipeline.models.fresh_configs import Facts
from pipeline.models.rotary import ropes, rotation, rotation_counts_positions
from pipeline.records.processes import choose_accelerator
from pipeline.records.run_folder import read_json

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        bert_pre_ln.FAMILY,
        bert.BERT,
        bert.ROBERTA,
        bert.XLM_ROBERTA,
        bert.CAMEMBERT,
        distilbert.FAMILY,
        modernbert.FAMILY,
        vit.VIT,
        vit.DEIT,
        dinov2.DINOV2,
        dinov2.WITH_REGISTERS,
        gpt2.FAMILY,
        llama.LLAMA,
        llama.MISTRAL,
        qwen.QWEN2,
        qwen.QWEN3,
        gemma.GEMMA2,
        gemma.GEMMA3,
        llama.PHI3,
        opt.FAMILY,
    )
}


def family(name: str) -> Family:
    """The family called `name`. Raises UserError with the nearest name; of a model that is known and not supported with
    the family nearest in architecture."""
    if name not in FAMILIES:
        if unsupported.is_unsupported(name):
            raise UserError(unsupported.refusal(f"model family '{name}'", {"model_type": name}, FAMILIES))
        raise UserError(f"unknown model family '{name}'{nearest(name, FAMILIES)}")
    return FAMILIES[name]


def family_of(sizes: ModelSizes) -> Family:
    """The family of a model that a config describes. Raises UserError for an unknown one, and for a size that it does
    not have, which would be without effect."""
    selected = family(sizes.family)
    if sizes.layers < selected.least_layers:
        raise UserError(f"models of family '{sizes.family}' have at least {selected.least_layers} layer; choose more")
    for size in get_args(OptionalSize):
        value = getattr(sizes, size)
        if value is not None and size not in selected.optional_sizes:
            having = ", ".join(name for name, other in FAMILIES.items() if size in other.optional_sizes)
            raise UserError(
                f"models of family '{sizes.family}' have no {size}, got {value}; remove it ({having} have one)"
            )
    return selected


SPARE_ROWS = 0.05
"""Rows of a published model's table beyond its tokenizer's pieces, at most, as a share of these (DeepSeek: 0.024)."""


def trained(sizes: ModelSizes, facts: Facts) -> PretrainedConfig:
    """The config of a fresh model to train on the data of `facts`. Raises UserError for other data, and for what
    `family_of` refuses."""
    return family_of(sizes).configure(sizes, facts)


def reads_pieces(config: PretrainedConfig, facts: Facts) -> bool:
    """Whether a model's table of pieces can be one for the text of `facts`: it has a row for each, and no more besides
    than `prepare` adds to a fresh one, or than published ones have."""
    if facts["kind"] != "text":
        return False
    pieces = facts.get("pieces", facts["vocab_size"])
    most = max(facts["vocab_size"], int((1 + SPARE_ROWS) * pieces))
    return bool(pieces <= getattr(config, "vocab_size", 0) <= most)


BRANCH_DROPS = ("hidden_dropout_prob", "resid_pdrop", "dropout", DROP_PATH_RATE)
"""Keys of the rates at which what a branch adds to the residual stream is dropped in training."""


def drops_branches(config: PretrainedConfig) -> bool:
    """Whether something is dropped behind the product that ends a layer."""
    known = of_config(config).keys.training
    return any(key in known and (getattr(config, key, None) or 0) > 0 for key in BRANCH_DROPS)


def of_config(config: PretrainedConfig) -> Family:
    """The family that a config object belongs to. Raises UserError for a config of another one."""
    match = next((each for each in FAMILIES.values() if each.config_class is type(config)), None)
    if match is None:
        raise _unsupported({**config.to_dict(), "model_type": config.model_type}, type(config).__name__)
    return match


def _unsupported(content: dict[str, Any], where: str) -> UserError:
    """What to say of a config that names its type, which is no supported one."""
    return UserError(f"{where}: {unsupported.refusal(unsupported.described(content), content, FAMILIES)}")


def architecture_of(config: PretrainedConfig) -> Architecture:
    """The architecture of a config."""
    return of_config(config).head(config).architecture(config)


def is_causal(config: PretrainedConfig) -> bool:
    """Whether a config's model predicts the next token, and attends to none behind it."""
    return of_config(config).head(config).name == "causal-lm"


def published_names(config: PretrainedConfig) -> dict[str, str]:
    """The published name of every parameter in the modules of a config's model; of a tied one its owner's."""
    architecture = architecture_of(config)
    return {module: architecture.aliases.get(name, name) for name, module in architecture.module_names.items()}


def initializer_range(config: PretrainedConfig) -> float:
    """The standard deviation of a fresh model's weights."""
    return float(getattr(config, of_config(config).initializer_range))


def as_stored(config: PretrainedConfig, held: Collection[str]) -> PretrainedConfig:
    """The config of the model whose parameters are `held`, with a pooler or without, as these say: the files decide."""
    return of_config(config).head(config).as_stored(config, held)


def function_keys(config: PretrainedConfig) -> dict[str, Any]:
    """What decides what a model computes with the same weights, by name: keys of the config, and sizes that no shape
    tells."""
    family, architecture = of_config(config), architecture_of(config)
    keys = [key for key in family.keys.function if key not in COMPARED_APART]
    sizes = {name: size for name, size in architecture.sizes().items() if "head" in name}
    epsilon = {architecture.epsilon.key: architecture.epsilon.value} if architecture.epsilon.key else {}
    stated = {key: getattr(config, key, None) for key in keys}
    rotary = {f"{ROPE} {key}": value for key, value in rotation(config).items()}
    return {**stated, **sizes, **epsilon, **rotary, "attention windows": family.windows(config)}


def recognise(content: dict[str, Any], where: str) -> tuple[Family, PretrainedConfig]:
    """The family and config of a Hugging Face config.json's content. Raises UserError for a foreign one."""
    kind = content.get("model_type")
    match = next((family for family in FAMILIES.values() if family.config_class.model_type == kind), None)
    if match is None:
        raise _foreign(content, where)
    try:
        said = copy.deepcopy(content)  # the config's class changes what it is given
        said = {key: value for key, value in said.items() if value is not None or key not in match.keys.undeclared}
        if ROPE in match.keys.function and (written := {key: content[key] for key in ROPE_BEFORE_5 if key in content}):
            said[ROPE_AS_WRITTEN] = written
        config = match.config_class.from_dict(said)
    except Exception as error:  # transformers and its strict dataclasses raise many kinds for wrong values
        raise UserError(f"{where}: not a config of '{kind}': {one_line(error)}") from error
    _require_possible_sizes(match, config, where)
    return match, config


def _foreign(content: dict[str, Any], where: str) -> UserError:
    """What to say of a config of no supported family."""
    if content.get("model_type"):
        return _unsupported(content, where)
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


def attention_of(config: PretrainedConfig, asked: str = "sdpa") -> str:
    """What a config's model attends with where it is asked for `sdpa` or `eager`: without a cap on its scores that the
    fused kernels do not have."""
    return "eager" if plain_attention.is_needed(config, of_config(config).head(config).model_class) else asked


def build(config: PretrainedConfig, seed: int = 0, attention: str = "sdpa", device: str = "cpu") -> PreTrainedModel:
    """A freshly initialised model; the same seed gives the same weights. attention: as in `attention_of`. Device 'meta'
    gives names and shapes only."""
    choose_accelerator()  # transformers imports DeepSpeed when it builds a model
    config = copy.deepcopy(config)  # transformers shares and mutates config objects
    config._attn_implementation = attention_of(config, attention)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        head = of_config(config).head(config)
        model = head.model_class(config, **head.options(config))
    if of_config(config).drops_paths:
        drop_path.install(model, architecture_of(config), getattr(config, DROP_PATH_RATE, 0.0))
    return model


def fill(
    model: PreTrainedModel, read: Callable[[str], Tensor], sources: Mapping[str, str] | None = None
) -> PreTrainedModel:
    """Copy the parameters of the model from `read(published name)`, keeping the dtype that is read. sources: of those
    that are to be read, what `read` calls them; None: all, by their names."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for row in architecture_of(model.config).rows():
            if (name := row.name if sources is None else sources.get(row.name)) is not None:
                parameters[row.module_name].data = read(name).detach().clone()
    model.tie_weights()
    return model


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
    "older_keys",
    "published_names",
    "read_config",
    "reads_pieces",
    "recognise",
    "ropes",
    "rotation",
    "rotation_counts_positions",
    "trained",
]
