"""Images for classification: sources -> the examples of a prepared folder, as images.py reads them."""

import io
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet

from pipeline.config.data import ImageData
from pipeline.data import augment, embedded
from pipeline.data.image_tables import ROW, ImageTables
from pipeline.data.images import LARGEST_HELD_OUT, ImageSamples
from pipeline.data.sampler import position
from pipeline.data.sources import TABLE, Embedded, HubSplit, LocalFiles, Source, require_column, resolve
from pipeline.errors import UserError, one_line
from pipeline.rng import derive

logger = logging.getLogger(__name__)

MEASURED = 4096
"""Images from which mean and standard deviation are taken, at most."""
ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
"""Pillow's modes with an alpha channel."""


def build(data: ImageData, folder: Path) -> dict[str, Any]:
    """Write both splits into `folder`; returns the facts. Raises UserError."""
    augment.require(data.augment)
    datasets.disable_progress_bars()
    training, evaluation, classes = _splits(data, folder / "cache")
    training.save(folder / "training")
    evaluation.save(folder / "evaluation")
    shutil.rmtree(folder / "cache", ignore_errors=True)
    logger.info(f"images: {len(training):,} for training, {len(evaluation):,} for evaluation, {len(classes)} classes")
    facts = {
        "kind": "images",
        "size": data.size,
        "channels": data.channels,
        "classes": len(classes),
        "class_names": classes,
        "training": len(training),
        "evaluation": len(evaluation),
        "tokens_per_sample": 1,
    }
    samples = ImageSamples(folder, facts | {"mean": [0.0], "std": [1.0]})
    _say_what_is_transparent(samples)
    return facts | _mean_and_std(samples)


@dataclass(frozen=True)
class Split:
    """Images to be stored. rows: with the columns of `_labelled`. tables: where the images lie, if not in `rows`."""

    rows: datasets.Dataset
    tables: ImageTables | None

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, rows: np.ndarray) -> "Split":
        return Split(self.rows.select(rows), self.tables)

    def save(self, folder: Path) -> None:
        """Store them as `datasets.load_from_disk` reads them. Raises UserError."""
        if self.tables is None:
            self.rows.save_to_disk(folder)
        else:
            rows, labels = (np.asarray(self.rows[key][:], dtype=np.int64) for key in (ROW, "label"))
            self.tables.save(rows, labels, folder)


def _splits(data: ImageData, cache: Path) -> tuple[Split, Split, list[str]]:
    """(training images, evaluation images, class names)."""
    training_source, evaluation_source = resolve(data)
    training = _load(training_source, data, cache)
    evaluation = _load(evaluation_source, data, cache) if evaluation_source else None
    classes = _classes(training.rows, data)
    training = _labelled(training, classes, data)
    if evaluation is None:
        return *_hold_out(training, data.evaluation_images), classes
    return training, _subset(_labelled(evaluation, classes, data), data.evaluation_images), classes


def _load(source: Source, data: ImageData, cache: Path) -> Split:
    """A source with its own columns and labels. cache: where `datasets` keeps the labels of parquet files."""
    match source:
        case Embedded():
            pixels, labels = embedded.digits()
            images = [{"bytes": _png(image), "path": None} for image in pixels]
            return Split(_dataset(data, images, [str(label) for label in labels]), None)
        case LocalFiles(paths):
            return _from_files(paths, data, cache)
        case HubSplit():
            if (found := source.tables()) is None:
                return Split(source.load(), None)
            return _from_tables(found[0], data, cache, found[1])


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _dataset(data: ImageData, images: Sequence[Any], labels: list[str]) -> datasets.Dataset:
    """images: paths, or `{"bytes": encoded, "path": None}`."""
    features = datasets.Features({data.column: datasets.Image(), data.label: datasets.Value("string")})
    return datasets.Dataset.from_dict({data.column: images, data.label: labels}, features=features)


def _from_files(files: list[Path], data: ImageData, cache: Path) -> Split:
    """Parquet files as they are; image files with the name of their folder as label."""
    tables = [file for file in files if file.name.lower().endswith(TABLE)]
    if not tables:
        return Split(_dataset(data, [str(file) for file in files], [file.parent.name for file in files]), None)
    if len(tables) < len(files):
        raise UserError(f"{tables[0]}: parquet files and image files together; give data.dataset one kind")
    return _from_tables(tables, data, cache)


def _from_tables(paths: list[Path], data: ImageData, cache: Path, features: datasets.Features | None = None) -> Split:
    for path in paths:
        _require_columns(path, _column_names(path), data)
    tables = ImageTables(paths, data.column, features)
    return Split(tables.rows(data.label, cache), tables)


def _column_names(table: Path) -> list[str]:
    try:
        return list(pyarrow.parquet.read_schema(table).names)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{table}: cannot read it ({one_line(error)}); it is damaged or no parquet file") from error


def _require_columns(where: object, present: list[str], data: ImageData) -> None:
    require_column(where, data.column, present)
    require_column(where, data.label, present, key="label")


def _labels(split: datasets.Dataset, data: ImageData) -> Sequence[int | str]:
    """The label of each row: a class name where the source has class names, else the column's value."""
    if ROW not in split.column_names:
        _require_columns(data.dataset, split.column_names, data)
    labels: Sequence[Any] = split[data.label][:]
    feature = split.features[data.label]
    invalid = [label for label in labels if not isinstance(label, int | str)]
    if invalid:
        raise UserError(
            f"{data.dataset}: column '{data.label}' contains {invalid[0]!r}, no class; labels are numbers or names"
        )
    if not isinstance(feature, datasets.ClassLabel):
        return labels
    if min(labels, default=0) < 0:
        raise UserError(f"{data.dataset}: column '{data.label}' has rows without a class (-1); remove them")
    return [feature.names[label] for label in labels]


def _classes(training: datasets.Dataset, data: ImageData) -> list[str]:
    """The class names, in the order of their labels."""
    labels: set[Any] = set(_labels(training, data))
    if len(labels) < 2:
        raise UserError(f"{data.dataset}: images of {len(labels)} class; a classifier needs 2 or more; see data.label")
    feature = training.features[data.label]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else [str(label) for label in sorted(labels)]


def _labelled(split: Split, classes: list[str], data: ImageData) -> Split:
    """The split with two columns: `image` (encoded), or ROW for one in tables, and `label` (0..classes-1)."""
    index = {name: number for number, name in enumerate(classes)}
    labels = [str(label) for label in _labels(split.rows, data)]
    unknown = sorted(set(labels) - set(index))
    if unknown:
        raise UserError(f"{data.evaluation}: class '{unknown[0]}' is not among the training images' {len(classes)}")
    images = split.rows.select_columns([ROW]) if split.tables else _encoded(split.rows, data)
    return Split(images.add_column("label", [index[label] for label in labels]), split.tables)


def _encoded(rows: datasets.Dataset, data: ImageData) -> datasets.Dataset:
    """The column `image` alone."""
    try:
        images = rows.select_columns([data.column]).cast_column(data.column, datasets.Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        where = f"{data.dataset}: column '{data.column}'"
        raise UserError(f"{where} contains no encoded images ({one_line(error)}); set data.column") from error
    return images if data.column == "image" else images.rename_column(data.column, "image")


def _hold_out(images: Split, most: int) -> tuple[Split, Split]:
    """(training images, evaluation images); of the latter `most`, and at most LARGEST_HELD_OUT of all."""
    count = min(most, int(LARGEST_HELD_OUT * len(images)))
    if not count:
        raise UserError(f"{len(images)} images are too few to cut an evaluation set from; give data.evaluation")
    held_out = _sample(len(images), count)
    return images.select(np.setdiff1d(np.arange(len(images)), held_out)), images.select(held_out)


def _subset(images: Split, most: int) -> Split:
    return images if most >= len(images) else images.select(_sample(len(images), most))


def _sample(size: int, count: int) -> np.ndarray:
    """`count` sorted rows out of range(size): the same for every seed of a run, so that runs with different seeds are
    evaluated on the same images."""
    return np.sort(position(derive(0, "evaluation images"), 0, np.arange(count), size))


def _drawn(samples: ImageSamples) -> np.ndarray:
    """The rows of the training images that are looked at: the same for every seed of a run, so that the same images
    are normalised alike."""
    size = samples.facts["training"]
    return position(derive(0, "mean"), 0, np.arange(min(size, MEASURED)), size)


def _say_what_is_transparent(samples: ImageSamples) -> None:
    """Pixels are read as they are stored, without their alpha: what was hidden shows."""
    rows = _drawn(samples)
    stored = (samples.splits["training"][int(row)]["image"] for row in rows)
    if names := [
        encoded["path"] or f"image {row}" for row, encoded in zip(rows, stored, strict=True) if _clear(encoded)
    ]:
        logger.warning(
            f"images: {len(names)} of the {len(rows)} looked at have an alpha channel, such as {names[0]}: it is "
            "dropped, and transparent pixels get the colours that they hide; lay such images on a background first"
        )


def _clear(encoded: dict[str, Any]) -> bool:
    """Whether an image has an alpha channel; its header is read alone. One that cannot be opened is told later."""
    try:
        image = PIL.Image.open(io.BytesIO(encoded["bytes"]))
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):
        return False
    return image.mode in ALPHA or "transparency" in image.info


def _mean_and_std(samples: ImageSamples) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of the training images, pixels in 0 to 1."""
    pixels = 0
    total, squares = np.zeros(samples.facts["channels"]), np.zeros(samples.facts["channels"])
    for row in _drawn(samples):
        (image,), _ = samples.read("training", row[None])
        values = augment.fit(image, samples.facts["size"]) / 255.0
        total, squares = total + values.sum(axis=(0, 1)), squares + (values**2).sum(axis=(0, 1))
        pixels += values.shape[0] * values.shape[1]
    mean = total / pixels
    deviation = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    # One grey level is the least an image can differ by: a constant channel stays finite.
    return {"mean": mean.tolist(), "std": np.maximum(deviation, 1 / 255).tolist()}
