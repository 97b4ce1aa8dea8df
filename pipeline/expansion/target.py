"""The target of an expansion: what a user names, and the config that follows from it and the source.

Only sizes (and what matters to training alone, such as dropout) are the target's; all that decides what a model
computes stays the source's, and a target that says otherwise is refused.
"""

import logging
from pathlib import Path
from typing import Any

import yaml
from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.config import load
from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError, nearest, placed
from pipeline.growth.plan import GrowthPlan
from pipeline.models import LAYER_TYPES, LAYER_TYPES_STATED, POSITIONS, Facts, Family
from pipeline.models.agreement import contradictions
from pipeline.models.architecture import Architecture
from pipeline.models.fresh_configs import positions_of
from pipeline.records.run_folder import read_json

logger = logging.getLogger(__name__)

SHOWN = 6
"""Layers in one message."""


def find(text: str, source: Path, source_config: Path | None = None) -> PretrainedConfig:
    """The target's config: `CONFIG.yaml:MODEL`, a Hugging Face config.json, a folder with one, or a JSON or YAML file
    with some keys of one that are sizes. Raises UserError.

    A YAML model and a list of sizes say sizes only; all else (vocabulary, positions, classes) is the source's.
    """
    path, _, name = text.partition(":")
    is_yaml = Path(path).suffix in (".yaml", ".yml")
    if is_yaml and name:
        return _yaml_model(text, source, source_config)
    place = Path(text) / checkpoints.CONFIG if Path(text).is_dir() else Path(text)
    content = _mapping(place) if is_yaml else read_json(place)
    if "model_type" in content and not is_yaml:
        return _hugging_face(content, str(place))
    family, small = models.read_config(checkpoints.config_file(checkpoints.locate(source), source_config))
    if content and set(content) <= {*family.keys.sizes, *family.keys.training}:
        return _rebuilt(small, content, f"--target {text}")
    return _yaml_model(text, source, source_config) if is_yaml else models.recognise(content, str(place))[1]


def _hugging_face(content: dict[str, Any], where: str) -> PretrainedConfig:
    """The target's config by a config.json's content. The source's types of layers count, and the file's may be as many
    as the source's layers: they are put aside, for `settled` to say that they are not followed."""
    stated = content.pop(LAYER_TYPES, None)
    family, config = models.recognise(content, where)
    if stated is not None and LAYER_TYPES in family.keys.kept:
        setattr(config, LAYER_TYPES_STATED, stated)
    return config


def _yaml_model(text: str, source: Path, source_config: Path | None) -> PretrainedConfig:
    """The target's config by `CONFIG.yaml:MODEL`. Raises UserError."""
    path, _, name = text.partition(":")
    known = load(Path(path)).models
    if name not in known:
        raise UserError(f"--target {text}: no model '{name}' in {path}{nearest(name, known)}")
    family, small = models.read_config(checkpoints.config_file(checkpoints.locate(source), source_config))
    if known[name].family != family.name:
        raise UserError(
            f"--target {text}: a '{known[name].family}', and the source is a '{family.name}'; "
            "choose a target of the source's family"
        )
    with placed(f"--target {text}"):
        sizes = models.family_of(known[name]).resize(known[name])
    return _rebuilt(small, sizes, f"--target {text}")


def of_sizes(small: PretrainedConfig, sizes: ModelSizes, facts: Facts) -> PretrainedConfig:
    """The config of the model of a run that a source is grown to: the source's but for the model's sizes, and what the
    run's data need more of: vocabulary, positions, larger images. Raises UserError."""
    family = models.of_config(small)
    if family.name != sizes.family:
        raise UserError(f"the source is a '{family.name}', the target a '{sizes.family}'; both must be of one family")
    changes = models.family_of(sizes).resize(sizes) | _of_data(family, small, facts)
    return adopt(small, _rebuilt(small, changes, "the target"))


def _of_data(family: Family, small: PretrainedConfig, facts: Facts) -> dict[str, Any]:
    """Nothing gets less than the source has."""
    if facts["kind"] != family.data:
        return {}  # which the training behind it refuses
    if family.data == "images":
        return {"image_size": facts["size"]}
    positions = small.attribute_map.get(POSITIONS, POSITIONS)
    table = small.vocab_size if models.reads_pieces(small, facts) else max(small.vocab_size, facts["vocab_size"])
    return {"vocab_size": table, positions: max(getattr(small, positions), positions_of(facts) + family.reserved)}


def _mapping(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file; nothing where it is no list of such."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}  # `load` says what is wrong with it
    return content if isinstance(content, dict) and all(isinstance(key, str) for key in content) else {}


def adopt(small: PretrainedConfig, target: PretrainedConfig) -> PretrainedConfig:
    """The config of the grown model: the source's, with the sizes and training options of `target`.

    Raises UserError for a contradiction."""
    family, other = models.of_config(small), models.of_config(target)
    if family is not other:
        raise UserError(
            f"the source is a '{family.name}', the target a '{other.name}'; choose a target of the source's family"
        )
    for said in contradictions(small, target).values():
        raise UserError(f"{said}; a growth keeps it, give the target the source's value")
    adopted = set(family.keys.sizes + family.keys.training)
    changes = {key: value for key, value in target.to_dict().items() if key in adopted}
    return _rebuilt(small, changes, "the target")


def _rebuilt(small: PretrainedConfig, changes: dict[str, Any], where: str) -> PretrainedConfig:
    """The source's config with other sizes, checked by its own class. Raises UserError for impossible sizes."""
    keys = models.of_config(small).keys
    inherited = {key: value for key, value in small.to_dict().items() if key not in keys.undeclared}
    content = {key: value for key, value in {**inherited, **changes}.items() if key not in keys.derived}
    if types := content.pop(LAYER_TYPES, None):
        content |= _spread_types(types, content["num_hidden_layers"], models.architecture_of(small))
    with placed(where):
        _require_same_rotation(small, content)
    for key in keys.width:
        if content.get(key) == small.hidden_size:
            content[key] = changes.get("hidden_size", small.hidden_size)
    return models.recognise({**content, "architectures": small.architectures}, where)[1]


def _spread_types(types: list[str], layers: int, source: Architecture) -> dict[str, list[str]]:
    """The types of attention of so many layers, until the plan decides (`settled`): in the source's pattern, or, where
    it has none, each repeated in its place. None where the source is no whole pattern: the config's class knows it."""
    (stack,) = source.stacks
    if stack.period > 1:
        return {LAYER_TYPES: [types[layer % stack.period] for layer in range(layers)]} if stack.blocks else {}
    return {LAYER_TYPES: [types[layer * len(types) // layers] for layer in range(layers)]}


def _require_same_rotation(small: PretrainedConfig, content: dict[str, Any]) -> None:
    """Raises UserError where rotary positions are scaled by the number of positions, and that grows."""
    before, after = (each.get(POSITIONS) for each in (small.to_dict(), content))
    if before == after or not models.rotation_counts_positions(small):
        return
    raise UserError(
        f"the source's rotary positions ({_kinds(small)}) depend on {POSITIONS}, and {after} "
        f"instead of {before} would be another function; give the target {POSITIONS} {before}"
    )


def _kinds(config: PretrainedConfig) -> str:
    """The kinds of rotary positions that a config names, each once."""
    return ", ".join(f"'{kind}'" for kind in dict.fromkeys(str(rope["rope_type"]) for rope in models.ropes(config)))


def settled(
    small: PretrainedConfig, large: PretrainedConfig, growth: GrowthPlan, stated: list[str] | None
) -> PretrainedConfig:
    """`large` with what only the plan decides: changed keys, and of every layer the type of attention of the layer that
    it goes on from. stated: what the target says of those, which counts for layers that begin afresh; that it is not
    followed in others is logged."""
    large.update(growth.config_change)
    if types := getattr(small, LAYER_TYPES, None):
        (stack,) = growth.layers
        continued, own = growth.continued(stack), getattr(large, LAYER_TYPES)
        own = stated if stated and len(stated) == len(own) else own
        followed = [kind if layer is None else types[layer] for kind, layer in zip(own, continued, strict=True)]
        large.update({LAYER_TYPES: followed})
        if stated and stated != followed:
            listed = ", ".join(followed[:SHOWN]) + (", …" if len(followed) > SHOWN else "")
            logger.warning(
                f"the target's {LAYER_TYPES} are not followed: every layer keeps the type of the source's layer that "
                f"it comes from ({listed})"
            )
    return large
