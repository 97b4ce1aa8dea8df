"""Whatever a tensor is called in a checkpoint, its published name: module names of transformers 5, files of a bare model
read for one with a head and the other way round, TensorFlow's old spelling of norms, buffers and heads to leave out."""

from fnmatch import fnmatchcase

from pipeline.models.architecture import Architecture

LEGACY = {".gamma": ".weight", ".beta": ".bias"}


def published(held: set[str], architecture: Architecture, prefix: str) -> dict[str, str]:
    """Held name -> published name, for every held tensor but those that `table` ignores. A name that fits nothing stays.

    prefix: what a model with a head puts before its bare model's names ("bert").
    """
    modules = {row.module: row.name for row in architecture.rows()}
    wanted = set(modules.values())
    names = {}
    for name in held:
        spellings = [modules.get(text, text) for text in _spellings(name, prefix)]
        found = next((text for text in spellings if text in wanted), None)
        alias = next((architecture.aliases[text] for text in spellings if text in architecture.aliases), None)
        if found or alias:
            names[name] = found or alias
        elif not any(fnmatchcase(text, pattern) for text in spellings for pattern in architecture.ignored):
            names[name] = name
    return _owners_first(names, held)


def _spellings(name: str, prefix: str) -> list[str]:
    """The name itself first, then with the norms' new suffixes, each without and with the prefix."""
    stems = [name] + [name.removesuffix(old) + new for old, new in LEGACY.items() if name.endswith(old)]
    return [text for stem in stems for text in (stem, stem.removeprefix(prefix + "."), f"{prefix}.{stem}")]


def _owners_first(names: dict[str, str], held: set[str]) -> dict[str, str]:
    """A tied name counts only where its owner is not held itself."""
    owners = {published for name, published in names.items() if name == published}
    return {name: published for name, published in names.items() if name == published or published not in owners}
