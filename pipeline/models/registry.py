"""The families by name, and what each says of a config of its own."""

from collections.abc import Collection
from typing import Any, get_args

from transformers import PretrainedConfig

from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError, nearest
from pipeline.models import unsupported
from pipeline.models.architecture import Architecture
from pipeline.models.config_keys import COMPARED_APART, DROP_PATH_RATE, ROPE
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
from pipeline.models.family import Family, OptionalSize
from pipeline.models.fresh_configs import Facts
from pipeline.models.rotary import rotation

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
        raise unsupported_model({**config.to_dict(), "model_type": config.model_type}, type(config).__name__)
    return match


def unsupported_model(content: dict[str, Any], where: str) -> UserError:
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
