"""Which model of the hub a lineage begins with, as the front matter of a model card says it."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.accounting.lineage import Ancestor
from pipeline.checkpoints.layouts import HUGGING_FACE, detect_layout
from pipeline.errors import UserError
from pipeline.records.run_folder import read_json

RELATIONS = ("adapter", "finetune", "merge", "quantized")
"""All that the hub knows (https://huggingface.co/docs/hub/model-cards#specifying-a-base-model): none is a growth."""
CACHED = re.compile(r"models--(?:(?P<owner>[^/]+?)--)?(?P<name>[^/]+)")
"""A model's folder in the hub's cache."""
_WORD = r"(?!.*(?:--|\.\.))\w(?:[\w.-]{0,94}\w)?"
ID = re.compile(f"{_WORD}/{_WORD}", re.ASCII)


def require_id(name: str) -> str:
    """`name`, an id of a model on the hub. Raises UserError where it cannot be one."""
    if not _is_id(name):
        raise UserError(f"--base-model: '{name}' is no id of a model on the hub; it is an OWNER/NAME")
    return name


def base_model(ancestors: Sequence[Ancestor], kept: dict[str, Any], stated: str | None = None) -> dict[str, Any]:
    """`base_model` and, where it is one that the hub knows, `base_model_relation`. ancestors: oldest first. kept: what
    the source's own card says, which counts where nothing nearer is known. stated: the id that a user gives."""
    known = stated or (hub_id(ancestors[0].path) if ancestors and ancestors[0].kind == "foreign" else None)
    grown = any(ancestor.kind == "expand" for ancestor in ancestors)
    if known is None:
        keys = ("base_model",) if grown else ("base_model", "base_model_relation")
        return {key: kept[key] for key in keys if key in kept}
    trained = any(ancestor.kind == "train" for ancestor in ancestors)
    return {"base_model": known} | ({"base_model_relation": "finetune"} if trained and not grown else {})


def hub_id(folder: Path) -> str | None:
    """The id of the model in a folder: that of the hub's cache in which it lies, else the one that its config says it
    was loaded by; None where neither is one. A path is none."""
    cached = next((match for part in reversed(folder.parts) if (match := CACHED.fullmatch(part))), None)
    if cached:
        return "/".join(part for part in (cached["owner"], cached["name"]) if part)
    if not folder.is_dir() or detect_layout(folder) is not HUGGING_FACE or not (folder / "config.json").is_file():
        return None
    name = read_json(folder / "config.json").get("_name_or_path")
    return name if isinstance(name, str) and _is_id(name) and not _is_path(name, folder) else None


def _is_id(name: str) -> bool:
    """Whether it is an OWNER/NAME by the hub's rules (those of huggingface_hub's `validate_repo_id`)."""
    return bool(ID.fullmatch(name)) and not name.endswith(".git")


def _is_path(name: str, folder: Path) -> bool:
    return any((place / name).exists() for place in (Path(), folder, *folder.resolve().parents))
