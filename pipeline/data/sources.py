"""Where data come from: what a config's `dataset` and `evaluation` name.

`embedded`, local paths (a file, a folder, a glob, or a list of them), or the name of a data set on the
Hugging Face hub. Text and images share these rules.
"""

import glob
import re
from pathlib import Path

import datasets

from pipeline.errors import UserError

EXTENSIONS = (".txt", ".jsonl", ".parquet", ".png", ".jpg", ".jpeg", ".xz", ".gz", ".zst")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def one_line(error: BaseException) -> str:
    """The text of an error of someone else's, short enough to stand inside one of ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:159] + "…"


def is_local(spec: str | list[str]) -> bool:
    """Whether `spec` can only mean local files: it is there, or it is written as a path, a glob or a list."""
    if isinstance(spec, list):
        return True
    looks = spec.startswith(("/", ".", "~")) or "*" in spec or "?" in spec or spec.lower().endswith(EXTENSIONS)
    return looks or Path(spec).exists()


def local_files(spec: str | list[str], known: tuple[str, ...]) -> list[Path]:
    """The files that `spec` names, in its order; folders are searched to any depth, sorted; none twice.

    Raises UserError for a path that is not there, a file of unknown extension, a folder or glob without
    any file of a `known` extension.
    """
    found: dict[Path, None] = {}
    for name in [spec] if isinstance(spec, str) else spec:
        found.update(dict.fromkeys(_expand(name, known)))
    if not found:
        raise UserError("data.dataset: an empty list; name at least one file, or say embedded")
    return list(found)


def _expand(name: str, known: tuple[str, ...]) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_file():
        if not path.name.lower().endswith(known):
            raise UserError(f"{name}: unknown kind of file; known: {', '.join(known)}")
        return [path]
    if path.is_dir():
        candidates = path.rglob("*")
    else:
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        if not matches:
            raise UserError(f"{name}: no such file or folder; check the path")
        candidates = (file for match in matches for file in ([match] if match.is_file() else match.rglob("*")))
    files = sorted(file for file in candidates if file.is_file() and file.name.lower().endswith(known))
    if not files:
        raise UserError(f"{name}: no file of a known kind in it; known: {', '.join(known)}")
    return files


def without(files: list[Path], held_out: list[Path]) -> list[Path]:
    """The training files that are not also evaluation files, so that a folder may hold both.

    Raises UserError when none is left.
    """
    taken = {file.resolve() for file in held_out}
    kept = [file for file in files if file.resolve() not in taken]
    if not kept:
        raise UserError(f"{held_out[0]}: data.dataset and data.evaluation name the same files; give each its own")
    return kept


def from_hub(name: str, subset: str | None, split: str) -> datasets.Dataset:
    """A split of a data set on the hub, downloaded whole into the hub's own cache. Raises UserError."""
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"{name}: no such file or folder, and no name of a hub data set; check data.dataset")
    try:
        return datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        chosen = f"{name}, subset {subset}" if subset else name
        raise UserError(
            f"{chosen}, split {split}: neither a local path nor a hub data set that can be loaded ({one_line(error)})"
        ) from error
