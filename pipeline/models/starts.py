"""Training a model whose weights come from elsewhere: its config, what it needs of the data, and the parameters of a
head that its checkpoint does not have, which begin afresh."""

import copy
from typing import Any

from transformers import PretrainedConfig

from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.models.architecture import Architecture
from pipeline.models.family import POOLER, Family
from pipeline.models.fresh_configs import Facts, class_keys, positions_of

DATA_DECIDE = ("lookup", "grid")
"""Kinds of spaces whose size the data decide: a vocabulary, positions."""


def adapted(stored: PretrainedConfig, facts: Facts) -> PretrainedConfig:
    """A checkpoint's config with the head that the data need: a bare encoder, or a head that is not trained here, gets
    its family's, a classifier of other classes one of the data's."""
    family, config = models.of_config(stored), copy.deepcopy(stored)
    other_classes = family.objective == "classifier" and stored.num_labels != len(facts["class_names"])
    if other_classes or not family.head(stored).trained_here:
        config.architectures = [family.heads[0].class_name]
        vars(config).pop(POOLER, None)
    if family.objective == "classifier":
        config.update(class_keys(facts))
    return config


def with_training_keys(config: PretrainedConfig, sizes: ModelSizes) -> PretrainedConfig:
    """The config with what a run's model says of training alone, such as dropout."""
    family, config = models.of_config(config), copy.deepcopy(config)
    config.update({key: value for key, value in family.resize(sizes).items() if key in family.keys.training})
    return config


def require(config: PretrainedConfig, sizes: ModelSizes, facts: Facts) -> None:
    """Raises UserError where a checkpoint's model is not the one of these sizes, or does not read the data."""
    family = models.of_config(config)
    if family.name != sizes.family:
        raise UserError(f"a '{family.name}', and the model is a '{sizes.family}'")
    there, here = (_sizes(models.architecture_of(each)) for each in (config, models.trained(sizes, facts)))
    if differing := [name for name in here if there.get(name) != here[name]]:
        name = differing[0]
        raise UserError(f"{name} is {there.get(name)} there and {here[name]} in the model")
    for key, value in _stated(family, sizes).items():
        if _restricted_to(value, getattr(config, key)) != value:
            raise UserError(f"{key} is {getattr(config, key)!r} there and {value!r} in the model; leave it out")
    if reason := unreadable(config, facts):
        raise UserError(reason)


def _sizes(architecture: Architecture) -> dict[str, int]:
    """Those that do not follow from the data."""
    decided = {space.name for space in architecture.spaces.values() if space.kind in DATA_DECIDE}
    return {name: size for name, size in architecture.sizes().items() if name not in decided}


def _restricted_to(stated: object, there: Any) -> object:
    """Of a config's value that has keys those that are stated; any other value whole."""
    if isinstance(there, dict) and isinstance(stated, dict):
        return {key: there.get(key) for key in stated}
    return there


def _stated(family: Family, sizes: ModelSizes) -> dict[str, object]:
    return {key: value for key, value in family.resize(sizes).items() if key in family.keys.function}


def unreadable(config: PretrainedConfig, facts: Facts) -> str | None:
    """What keeps a model from being trained on the data of `facts`, in words."""
    family, head = models.of_config(config), models.of_config(config).head(config)
    if head.name == "encoder":
        return "the model has no head, and so no loss; take one that has"
    if not head.trained_here:
        return (
            f"the data have no labels for its head ({head.name}), and so no loss; take a {family.heads[0].class_name}"
        )
    if family.data != facts["kind"]:
        return f"the data are {facts['kind']}, which family '{family.name}' does not read"
    return _unread_text(family, config, facts) if family.data == "text" else _unread_images(config, facts)


def _unread_text(family: Family, config: PretrainedConfig, facts: Facts) -> str | None:
    positions = config.max_position_embeddings - family.reserved
    if not models.reads_pieces(config, facts):
        pieces = facts.get("pieces", facts["vocab_size"])
        return f"the model has vocab_size {config.vocab_size}, the tokenizer of the data {pieces} pieces"
    if positions_of(facts) > positions:
        return f"the data's blocks of {positions_of(facts)} tokens are longer than the model's {positions} positions"
    return None


def _unread_images(config: PretrainedConfig, facts: Facts) -> str | None:
    found = {"image_size": facts["size"], "num_channels": facts["channels"], "num_labels": len(facts["class_names"])}
    for key, value in found.items():
        if getattr(config, key) != value:
            return f"the model has {key} {getattr(config, key)}, the data {value}"
    return None


def sources(stored: PretrainedConfig, trained: PretrainedConfig) -> dict[str, str]:
    """The name in a checkpoint, by its config, of every parameter of the trained model that it holds in the same
    shape."""
    prefix = f"{models.of_config(trained).heads[0].model_class.base_model_prefix}."
    there, here = models.architecture_of(stored), models.architecture_of(trained)
    shapes = {row.name: there.shape(row) for row in there.rows()}
    found = {}
    for row in here.rows():
        name = row.name if row.name in shapes else row.name.removeprefix(prefix)
        if shapes.get(name) == here.shape(row):
            found[row.name] = name
    return found


def fresh(stored: PretrainedConfig, trained: PretrainedConfig) -> list[str]:
    """The parameters of the trained model's head that a checkpoint does not have, by its config. Raises UserError where
    others are missing."""
    prefix = f"{models.of_config(trained).heads[0].model_class.base_model_prefix}."
    held = sources(stored, trained)
    missing = [row.name for row in models.architecture_of(trained).rows() if row.name not in held]
    if beyond := [name for name in missing if name.startswith(prefix)]:
        raise UserError(f"'{beyond[0]}' is not there, or has another shape than the model's")
    return missing


def left_behind(stored: PretrainedConfig, trained: PretrainedConfig) -> list[str]:
    """The parameters that a checkpoint holds, by its config, and the trained model has none of: a pooler, another
    head."""
    taken, own = set(sources(stored, trained).values()), {row.name for row in models.architecture_of(trained).rows()}
    return [row.name for row in models.architecture_of(stored).rows() if row.name not in taken | own]
