"""The target of an expansion: what a user names, and the config that follows from it and the source.

Only sizes (and what matters to training alone, such as dropout) are the target's; all that decides what a model
computes stays the source's, and a target that says otherwise is refused.
"""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.config import load
from pipeline.errors import UserError, nearest, placed
from pipeline.models import ConfigKeys


def find(text: str, source: Path, source_config: Path | None = None) -> PretrainedConfig:
    """The target's config: `CONFIG.yaml:MODEL`, a Hugging Face config.json, or a folder with one. Raises UserError.

    A YAML model says sizes only; what the data decided (vocabulary, positions, classes) is the source's.
    """
    path, _, name = text.partition(":")
    if Path(path).suffix not in (".yaml", ".yml"):
        place = Path(text) / checkpoints.CONFIG if Path(text).is_dir() else Path(text)
        return models.read_config(place)[1]
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


def adopt(small: PretrainedConfig, target: PretrainedConfig) -> PretrainedConfig:
    """The config of the grown model: the source's, with the sizes and training options of `target`.

    Raises UserError for a contradiction."""
    family, other = models.of_config(small), models.of_config(target)
    if family is not other:
        raise UserError(
            f"the source is a '{family.name}', the target a '{other.name}'; choose a target of the source's family"
        )
    before, after = small.to_dict(), target.to_dict()
    _require_agreement(family.keys, before, after)
    adopted = set(family.keys.sizes + family.keys.training)
    changes = {key: value for key, value in after.items() if key in adopted}
    return _rebuilt(small, changes, "the target")


def _require_agreement(keys: ConfigKeys, before: dict[str, Any], after: dict[str, Any]) -> None:
    """Of every key but those whose value one side decides."""
    decided = {*keys.sizes, *keys.training, *keys.kept, *keys.derived}
    for key in sorted({*before, *after} - decided):
        if before.get(key) != after.get(key):
            raise UserError(
                f"the target's config has {key} {after.get(key)!r} where the source's has {before.get(key)!r}; "
                "a growth keeps it, give the target the source's value"
            )


def _rebuilt(small: PretrainedConfig, changes: dict[str, Any], where: str) -> PretrainedConfig:
    """The source's config with other sizes, checked by its own class. Raises UserError for impossible sizes."""
    keys = models.of_config(small).keys
    inherited = {key: value for key, value in small.to_dict().items() if key not in keys.undeclared}
    content = {key: value for key, value in {**inherited, **changes}.items() if key not in keys.derived}
    if layer_types := content.pop("layer_types", None):
        content["layer_types"] = _layer_types(layer_types, content["num_hidden_layers"], where)
    for key in keys.width:
        if content.get(key) == small.hidden_size:
            content[key] = changes.get("hidden_size", small.hidden_size)
    return models.recognise({**content, "architectures": small.architectures}, where)[1]


def _layer_types(types: list[str], layers: int, where: str) -> list[str]:
    """The types of attention of the target's layers. Raises UserError where the source's alternate and depth grows."""
    if len(set(types)) > 1 and layers != len(types):
        raise UserError(
            f"{where}: the source's layers alternate between {' and '.join(sorted(set(types)))}, "
            f"which a growth in depth would shift; keep {len(types)} layers"
        )
    return types[:1] * layers
