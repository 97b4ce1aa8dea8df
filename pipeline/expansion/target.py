"""The target of an expansion: what a user names, and the config that follows from it and the source.

Only sizes (and what matters to training alone, such as dropout) are the target's; all that decides what a model
computes stays the source's, and a target that says otherwise is refused.
"""

from pathlib import Path

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.config import load
from pipeline.errors import UserError, nearest
from pipeline.models import Family

TRAINING = ("dropout", "pdrop", "drop_path", "initializer_range", "initializer_factor", "layerscale_value", "use_cache")
"""Parts of the keys that a target may change although a growth does not: they count in training only."""
KEPT = (
    "eps",
    "epsilon",
    "architectures",
    "transformers_version",
    "dtype",
    "id2label",
    "label2id",
    "_name_or_path",
    "layer_types",
    "token_id",
    "max_window_layers",
    "chunk_size",
    "problem_type",
    "return_dict",
    "output_",
    "task_specific",
    "tokenizer_class",
)
"""Parts of the keys of which the source's value is kept, whatever the target says: they decide nothing about a growth."""
STAGES = ("out_features", "out_indices", "stage_names")
"""Keys of a backbone that `transformers` derives from the number of layers."""


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
            f"--target {text}: a '{known[name].family}', and the source is a '{family.name}'; choose a target of the source's family"
        )
    return _rebuilt(small, family.resize(known[name]), f"--target {text}")


def adopt(small: PretrainedConfig, wanted: PretrainedConfig) -> PretrainedConfig:
    """The config of the grown model: the source's, with the sizes of `wanted`. Raises UserError for a contradiction."""
    family, other = models.of_config(small), models.of_config(wanted)
    if family is not other:
        raise UserError(
            f"the source is a '{family.name}', the target a '{other.name}'; choose a target of the source's family"
        )
    before, after = small.to_dict(), wanted.to_dict()
    changes = {
        key: after[key]
        for key in after
        if after[key] != before.get(key) and (key in family.sizes or _any(key, TRAINING))
    }
    _require_agreement(family, before, after)
    return _rebuilt(small, changes, "the target")


def _any(key: str, parts: tuple[str, ...]) -> bool:
    return any(part in key for part in parts)


def _require_agreement(family: Family, before: dict, after: dict) -> None:
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key) and key not in family.sizes and not _any(key, TRAINING + KEPT + STAGES):
            raise UserError(
                f"the target's config has {key} {after.get(key)!r} where the source's has {before.get(key)!r}; a growth grow_optimizer_state it, give the target the source's value"
            )


def _rebuilt(small: PretrainedConfig, changes: dict, where: str) -> PretrainedConfig:
    """The source's config with other sizes, checked by its own class. Raises UserError for impossible sizes."""
    content = {key: value for key, value in {**small.to_dict(), **changes}.items() if key not in STAGES}
    types = content.pop("layer_types", None) or []
    if len(set(types)) > 1 and content["num_hidden_layers"] != len(types):
        raise UserError(
            f"{where}: the source's layers alternate between {' and '.join(sorted(set(types)))}, which a growth in depth would shift; keep {len(types)} layers"
        )
    if types:
        content["layer_types"] = types[:1] * content["num_hidden_layers"]
    if content.get("pooler_output_size") == small.hidden_size:
        content["pooler_output_size"] = changes.get("hidden_size", small.hidden_size)
    return models.recognise({**content, "architectures": small.architectures}, where)[1]
