"""Where data come from: what a config's `dataset` and `evaluation` name, for text and images alike.

`embedded`, local paths (a file, a folder, a glob, or a list of them), or the name of a data set on the
Hugging Face hub. `resolve` decides which of them is meant; nothing is read before it has.
"""

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config.data import ImageData, TextData
from pipeline.errors import UserError, one_line

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

SHOWN = 5
"""Kinds of files in one remark."""
COMPRESSED = (".xz", ".gz", ".zst")
TEXT, JSONL = (tuple(f"{kind}{compression}" for compression in ("", *COMPRESSED)) for kind in (".txt", ".jsonl"))
TABLE = ".parquet"
IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")
EXTENSIONS = {"text": (*TEXT, *JSONL, TABLE), "images": (TABLE, *IMAGES)}
"""Of the files that can be read, by the kind of the data."""
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Embedded:
    """The quick start's corpus, which needs no network (embedded.py)."""


@dataclass(frozen=True)
class LocalFiles:
    """Files in the order in which they are read."""

    paths: list[Path]


@dataclass(frozen=True)
class HubSplit:
    """A split of a data set on the hub. `datasets` takes a second to import, which other sources do without."""

    name: str
    subset: str | None
    split: str

    def load(self) -> "datasets.Dataset":
        """Download it whole into the hub's own cache, and convert it there. Raises UserError."""
        import datasets

        with self._explained():
            return datasets.load_dataset(self.name, self.subset, split=self.split)

    def tables(self) -> "tuple[list[Path], datasets.Features | None] | None":
        """Its parquet files, downloaded into the hub's own cache, and what its card says of their columns; None where
        it consists of others. Raises UserError."""
        import datasets

        with self._explained():
            builder = datasets.load_dataset_builder(self.name, self.subset)
            files = (builder.config.data_files or {}).get(self.split)
            if not files or not all(str(file).lower().endswith(TABLE) for file in files):
                return None
            manager = datasets.DownloadManager(
                dataset_name=self.name,
                download_config=datasets.DownloadConfig(
                    cache_dir=builder._cache_downloaded_dir, use_etag=False, token=builder.token
                ),
            )
            return [Path(path) for path in manager.download(list(files))], builder.info.features

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import datasets

        try:
            yield
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            dataset = f"{self.name}, subset {self.subset}" if self.subset else self.name
            raise UserError(
                f"{dataset}, split {self.split}: neither a local path nor a hub data set that can be loaded "
                f"({one_line(error)})"
            ) from error


Source = Embedded | LocalFiles | HubSplit


def resolve(data: TextData | ImageData) -> tuple[Source, Source | None]:
    """(training source, evaluation source or None where it is cut from the training data).

    A file that both sources name is left to the evaluation. Raises UserError.
    """
    extensions = EXTENSIONS[data.kind]
    training_is_local = data.dataset == "embedded" or is_local(data.dataset)
    if data.subset and training_is_local:
        raise UserError(f"data.subset: '{data.subset}' goes with a hub data set, and {data.dataset} is none; remove it")
    evaluation = _evaluation(data, extensions, training_is_local)
    if data.dataset == "embedded":
        return Embedded(), evaluation
    if not training_is_local:
        if not HUB_NAME.fullmatch(str(data.dataset)):
            raise UserError(
                f"{data.dataset}: no such file or folder, and no name of a hub data set; check data.dataset"
            )
        return HubSplit(str(data.dataset), data.subset, "train"), evaluation
    paths = local_files(data.dataset, extensions, "data.dataset")
    return LocalFiles(without(paths, evaluation.paths) if isinstance(evaluation, LocalFiles) else paths), evaluation


def _evaluation(
    data: TextData | ImageData, extensions: tuple[str, ...], training_is_local: bool
) -> LocalFiles | HubSplit | None:
    if data.evaluation is None:
        return None
    if is_local(data.evaluation):
        return LocalFiles(local_files(data.evaluation, extensions, "data.evaluation"))
    if training_is_local:
        raise UserError(f"{data.evaluation}: no such file or folder; check data.evaluation")
    return HubSplit(str(data.dataset), data.subset, str(data.evaluation))


def require_column(where: object, column: str, present: Iterable[str], key: str = "column") -> None:
    """Raises UserError when a table lacks the column that `data.key` names."""
    if column not in present:
        raise UserError(f"{where}: no column '{column}'; it has {', '.join(present) or 'none'}; set data.{key}")


def is_local(spec: str | list[str]) -> bool:
    """Whether `spec` can only mean local files: it exists, or it is written as a path, a glob or a list."""
    if isinstance(spec, list):
        return True
    known = (*EXTENSIONS["text"], *EXTENSIONS["images"], *COMPRESSED)
    is_path = spec.startswith(("/", ".", "~")) or "*" in spec or "?" in spec or spec.lower().endswith(known)
    return is_path or Path(spec).exists()


def local_files(spec: str | list[str], extensions: tuple[str, ...], key: str) -> list[Path]:
    """The files that `spec`, the value of the config's `key`, names, in its order; folders are searched to any depth,
    sorted; none twice.

    Raises UserError for a path that does not exist, a file of another extension, a folder or glob without
    any file that has one of the `extensions`.
    """
    files: dict[Path, None] = {}
    for name in [spec] if isinstance(spec, str) else spec:
        files.update(dict.fromkeys(_expand(name, extensions, key)))
    if not files:
        raise UserError(f"{key}: an empty list; name at least one file, or say embedded")
    return list(files)


def _expand(name: str, extensions: tuple[str, ...], key: str) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_file():
        if not path.name.lower().endswith(extensions):
            raise UserError(f"{name}: unknown kind of file; known: {', '.join(extensions)}; check {key}")
        return [path]
    found = sorted(file for file in _candidates(name, path, key) if file.is_file())
    files = [file for file in found if file.name.lower().endswith(extensions)]
    _say_what_is_passed_over(name, found, files)
    if not files:
        raise UserError(f"{name}: no file of a known kind in it; known: {', '.join(extensions)}; check {key}")
    return files


def _say_what_is_passed_over(name: str, found: list[Path], files: list[Path]) -> None:
    """Files of other kinds, and folders (classes of images) that have nothing else."""
    others = sorted(set(found) - set(files))
    kinds = Counter(file.suffix.lower() or file.name for file in others if not file.name.startswith("."))
    if kinds and files:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(SHOWN))
        logger.warning(f"{name}: files of other kinds are passed over: {listed}{', …' * (len(kinds) > SHOWN)}")
    if empty := sorted({file.parent for file in others} - {file.parent for file in files} - {Path(name)}):
        logger.warning(f"{name}: {len(empty)} folders have nothing that is read, such as {empty[0]}")


def _candidates(name: str, path: Path, key: str) -> Iterable[Path]:
    """All that lies in a folder, or in what a glob matches."""
    if path.is_dir():
        return path.rglob("*")
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    if not matches:
        raise UserError(f"{name}: no such file or folder; check {key}")
    return (file for match in matches for file in ([match] if match.is_file() else match.rglob("*")))


def without(training: list[Path], evaluation: list[Path]) -> list[Path]:
    """The training files that are not also evaluation files, so that a folder may contain both.

    Raises UserError when none is left.
    """
    excluded = {file.resolve() for file in evaluation}
    remaining = [file for file in training if file.resolve() not in excluded]
    if not remaining:
        raise UserError(f"{evaluation[0]}: data.dataset and data.evaluation name the same files; give each its own")
    return remaining
