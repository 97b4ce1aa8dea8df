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
    """Stored name -> published name, for every stored tensor but those that the architecture ignores, and tied names
    whose owner is stored too. A name that fits nothing stays.

    prefix: what a model with a head puts before its bare model's names ("bert").
    """
    parameters = {param.name for param in architecture.rows()}
    modules = {param.module_name: param.name for param in architecture.rows()}
    modules = {module: name for module, name in modules.items() if module not in architecture.aliases}
    own, tied = {}, aliases(stored, architecture, prefix)
    for name in stored:
        spellings = [modules.get(text, text) for text in _spellings(name, prefix)]
        parameter = next((text for text in spellings if text in parameters), None)
        ignored = any(fnmatchcase(text, pattern) for text in spellings for pattern in architecture.ignored)
        if parameter or not (ignored or name in tied):
            own[name] = parameter or name
    owners = {name: architecture.aliases[alias] for name, alias in tied.items()}
    return own | {name: owner for name, owner in owners.items() if owner not in own.values()}


def aliases(stored: Collection[str], architecture: Architecture, prefix: str) -> dict[str, str]:
    """Stored name -> tied name, for every stored tensor that the architecture ties to another."""
    spelled = ((name, text) for name in stored for text in _spellings(name, prefix))
    return {name: text for name, text in spelled if text in architecture.aliases}


def left_behind(stored: Collection[str], architecture: Architecture, prefix: str) -> list[str]:
    """The stored tensors that the architecture ignores, in order; a tied name, whose owner counts, is none of them."""
    known = {*published(stored, architecture, prefix), *aliases(stored, architecture, prefix)}
    return [name for name in stored if name not in known]


def unprefixed(stored: Collection[str], prefix: str) -> list[str]:
    """The stored names as a bare model has them."""
    return [name.removeprefix(f"{prefix}.") for name in stored]


def _spellings(name: str, prefix: str) -> list[str]:
    """The name itself first, then with the norms' new suffixes, each without and with the prefix."""
    stems = [name] + [name.removesuffix(old) + new for old, new in LEGACY.items() if name.endswith(old)]
    return [text for stem in stems for text in (stem, stem.removeprefix(prefix + "."), f"{prefix}.{stem}")]
