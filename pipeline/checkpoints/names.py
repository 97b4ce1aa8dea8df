"""Whatever a tensor is called in a checkpoint, its published name: module names of transformers 5, files of a bare
model read for one with a head and the other way round, TensorFlow's old spelling of norms, buffers and heads to leave
out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.models.architecture import Architecture

LEGACY = {".gamma": ".weight", ".beta": ".bias"}
BUFFERS = ("*position_ids", "*.attn.bias", "*.attn.masked_bias", "*.inv_freq")
"""What modules compute for themselves and older files hold."""


def published(stored: Collection[str], architecture: Architecture, prefix: str) -> dict[str, str]:
    """Stored name -> published name, for every stored tensor but those that the architecture ignores. A name that fits
    nothing stays.

    prefix: what a model with a head puts before its bare model's names ("bert").
    """
    modules = {param.module_name: param.name for param in architecture.rows()}
    parameters = set(modules.values())
    names = {}
    for name in stored:
        spellings = [modules.get(text, text) for text in _spellings(name, prefix)]
        parameter = next((text for text in spellings if text in parameters), None)
        alias = next((architecture.aliases[text] for text in spellings if text in architecture.aliases), None)
        if parameter or alias:
            names[name] = parameter or alias or name
        elif not _ignored(spellings, architecture):
            names[name] = name
    return _owners_first(names)


def left_out(stored: Collection[str], names: Mapping[str, str], architecture: Architecture, prefix: str) -> list[str]:
    """The tensors that were learned, and that the architecture ignores: those of other heads. names: the `published`
    ones."""
    left = [name for name in sorted(stored) if name not in names and _ignored(_spellings(name, prefix), architecture)]
    return [name for name in left if not any(fnmatchcase(name, pattern) for pattern in BUFFERS)]


def _ignored(spellings: list[str], architecture: Architecture) -> bool:
    return any(fnmatchcase(text, pattern) for text in spellings for pattern in architecture.ignored)


def _spellings(name: str, prefix: str) -> list[str]:
    """The name itself first, then with the norms' new suffixes, each without and with the prefix."""
    stems = [name] + [name.removesuffix(old) + new for old, new in LEGACY.items() if name.endswith(old)]
    return [text for stem in stems for text in (stem, stem.removeprefix(prefix + "."), f"{prefix}.{stem}")]


def _owners_first(names: dict[str, str]) -> dict[str, str]:
    """A tied name counts only where its owner is not stored itself."""
    owners = {parameter for name, parameter in names.items() if name == parameter}
    return {name: parameter for name, parameter in names.items() if name == parameter or parameter not in owners}
