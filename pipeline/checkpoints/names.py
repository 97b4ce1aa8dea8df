"""Whatever a tensor is called in a checkpoint, its published name: module names of transformers 5, files of a bare
model read for one with a head and the other way round, TensorFlow's old spelling of norms, buffers and heads to leave
out."""

from __future__ import annotations

from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.models.architecture import Architecture

LEGACY = {".gamma": ".weight", ".beta": ".bias"}


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
        elif not any(fnmatchcase(text, pattern) for text in spellings for pattern in architecture.ignored):
            names[name] = name
    return _owners_first(names)


def left_behind(stored: Collection[str], architecture: Architecture, prefix: str) -> list[str]:
    """The stored tensors that the architecture ignores, in order; a tied name, whose owner counts, is none of them."""
    known = published(stored, architecture, prefix)
    return [
        name
        for name in stored
        if name not in known and not any(text in architecture.aliases for text in _spellings(name, prefix))
    ]


def _spellings(name: str, prefix: str) -> list[str]:
    """The name itself first, then with the norms' new suffixes, each without and with the prefix."""
    stems = [name] + [name.removesuffix(old) + new for old, new in LEGACY.items() if name.endswith(old)]
    return [text for stem in stems for text in (stem, stem.removeprefix(prefix + "."), f"{prefix}.{stem}")]


def _owners_first(names: dict[str, str]) -> dict[str, str]:
    """A tied name counts only where its owner is not stored itself."""
    owners = {parameter for name, parameter in names.items() if name == parameter}
    return {name: parameter for name, parameter in names.items() if name == parameter or parameter not in owners}
