"""Images for classification: sources -> stored examples -> pixels.

A prepared folder holds `training/` and `evaluation/`, saved by `datasets`: encoded images (PNG, JPEG) and labels
0..classes-1 in mapped Arrow files, so that any row costs the same and an image is decoded only when it is read.
"""

import io
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet
import torch

from pipeline.config.schema import Augmentation, ImageData
from pipeline.data import augment, embedded
from pipeline.data.sampler import position
from pipeline.data.sources import TABLE, Embedded, HubSplit, LocalFiles, Source, require_column, resolve
from pipeline.errors import UserError, one_line
from pipeline.rng import derive

logger = logging.getLogger(__name__)

LARGEST_HELD_OUT = 0.2
"""The largest share of the images that is cut off for evaluation."""

MEASURED = 4096
"""Images from which mean and standard deviation are taken, at most."""
ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
"""Pillow's modes with an alpha channel."""


def build(data: ImageData, seed: int, folder: Path) -> dict[str, Any]:
    """Write both splits into `folder`; returns the facts. Raises UserError."""
    augment.require(data.augment)
    datasets.disable_progress_bars()
    training, evaluation, classes = _splits(data, folder / "cache")
    training.save_to_disk(folder / "training")
    evaluation.save_to_disk(folder / "evaluation")
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
    _say_what_is_transparent(samples, seed)
    return facts | _mean_and_std(samples, seed)


def _splits(data: ImageData, cache: Path) -> tuple[datasets.Dataset, datasets.Dataset, list[str]]:
    """(training images, evaluation images, class names), both splits with the columns of `_labelled`."""
    training_source, evaluation_source = resolve(data)
    training = _load(training_source, data, cache)
    evaluation = _load(evaluation_source, data, cache) if evaluation_source else None
    classes = _classes(training, data)
    training = _labelled(training, classes, data)
    if evaluation is None:
        return *_hold_out(training, data.evaluation_images), classes
    return training, _subset(_labelled(evaluation, classes, data), data.evaluation_images), classes


def _load(source: Source, data: ImageData, cache: Path) -> datasets.Dataset:
    """A source with its own columns and labels. cache: where `datasets` converts parquet files."""
    match source:
        case Embedded():
            pixels, labels = embedded.digits()
            images = [{"bytes": _png(image), "path": None} for image in pixels]
            return _dataset(data, images, [str(label) for label in labels])
        case LocalFiles(paths):
            return _from_files(paths, data, cache)
        case HubSplit():
            return source.load()


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _dataset(data: ImageData, images: Sequence[Any], labels: list[str]) -> datasets.Dataset:
    """images: paths, or `{"bytes": encoded, "path": None}`."""
    features = datasets.Features({data.column: datasets.Image(), data.label: datasets.Value("string")})
    return datasets.Dataset.from_dict({data.column: images, data.label: labels}, features=features)


def _from_files(files: list[Path], data: ImageData, cache: Path) -> datasets.Dataset:
    """Parquet files as they are; image files with the name of their folder as label."""
    tables = [file for file in files if file.name.lower().endswith(TABLE)]
    if not tables:
        return _dataset(data, [str(file) for file in files], [file.parent.name for file in files])
    if len(tables) < len(files):
        raise UserError(f"{tables[0]}: parquet files and image files together; give data.dataset one kind")
    for table in tables:
        _require_columns(table, _column_names(table), data)
    try:
        images = datasets.Dataset.from_parquet([str(table) for table in tables], cache_dir=str(cache))
        _require_inside(tables[0], images, data.column)
        return images
    except (datasets.exceptions.DatasetsError, pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{tables[0]}: cannot read the images ({one_line(error.__cause__ or error)})") from error


def _require_inside(table: Path, images: datasets.Dataset, column: str) -> None:
    """Raises UserError for a table that names files, which may lie anywhere, where it should hold encoded images."""
    stored = images.data.column(column)
    held = pa.types.is_struct(stored.type) and stored.type.get_field_index("bytes") >= 0
    content = pyarrow.compute.struct_field(stored, "bytes") if held else stored
    if not (pa.types.is_binary(content.type) or pa.types.is_large_binary(content.type)):
        raise UserError(f"{table}: column '{column}' holds {stored.type}, no encoded images; set data.column")
    if content.null_count:
        raise UserError(f"{table}: column '{column}' has {content.null_count} rows without an encoded image; put it in")


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


def _labelled(split: datasets.Dataset, classes: list[str], data: ImageData) -> datasets.Dataset:
    """The split with two columns: `image` (encoded) and `label` (0..classes-1)."""
    index = {name: number for number, name in enumerate(classes)}
    labels = [str(label) for label in _labels(split, data)]
    unknown = sorted(set(labels) - set(index))
    if unknown:
        raise UserError(f"{data.evaluation}: class '{unknown[0]}' is not among the training images' {len(classes)}")
    try:
        images = split.select_columns([data.column]).cast_column(data.column, datasets.Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        where = f"{data.dataset}: column '{data.column}'"
        raise UserError(f"{where} contains no encoded images ({one_line(error)}); set data.column") from error
    if data.column != "image":
        images = images.rename_column(data.column, "image")
    return images.add_column("label", [index[label] for label in labels])


def _hold_out(images: datasets.Dataset, most: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(training images, evaluation images); of the latter `most`, and at most LARGEST_HELD_OUT of all."""
    count = min(most, int(LARGEST_HELD_OUT * len(images)))
    if not count:
        raise UserError(f"{len(images)} images are too few to cut an evaluation set from; give data.evaluation")
    held_out = _sample(len(images), count)
    return images.select(np.setdiff1d(np.arange(len(images)), held_out)), images.select(held_out)


def _subset(images: datasets.Dataset, most: int) -> datasets.Dataset:
    return images if most >= len(images) else images.select(_sample(len(images), most))


def _sample(size: int, count: int) -> np.ndarray:
    """`count` sorted rows out of range(size): the same for every seed of a run, so that runs with different seeds are
    evaluated on the same images."""
    return np.sort(position(derive(0, "evaluation images"), 0, np.arange(count), size))


def _drawn(samples: "ImageSamples", seed: int) -> np.ndarray:
    """The rows of the training images that are looked at."""
    size = samples.facts["training"]
    return position(derive(seed, "mean"), 0, np.arange(min(size, MEASURED)), size)


def _say_what_is_transparent(samples: "ImageSamples", seed: int) -> None:
    """Pixels are read as they are stored, without their alpha: what was hidden shows."""
    rows = _drawn(samples, seed)
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


def _mean_and_std(samples: "ImageSamples", seed: int) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of the training images, pixels in 0 to 1."""
    pixels = 0
    total, squares = np.zeros(samples.facts["channels"]), np.zeros(samples.facts["channels"])
    for row in _drawn(samples, seed):
        (image,), _ = samples.read("training", row[None])
        values = augment.fit(image, samples.facts["size"]) / 255.0
        total, squares = total + values.sum(axis=(0, 1)), squares + (values**2).sum(axis=(0, 1))
        pixels += values.shape[0] * values.shape[1]
    mean = total / pixels
    deviation = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    # One grey level is the least an image can differ by: a constant channel stays finite.
    return {"mean": mean.tolist(), "std": np.maximum(deviation, 1 / 255).tolist()}


class ImageSamples:
    """Reads the samples of a prepared folder."""

    def __init__(self, folder: Path, facts: dict[str, Any], augmentation: Augmentation = "none"):
        """Raises UserError when the folder is damaged or the augmentation needs a package that is not installed."""
        self.facts = facts
        self.splits = {split: _open_split(folder / split, facts[split]) for split in ("training", "evaluation")}
        self.views = augment.Views(augmentation, facts["size"], facts["mean"], facts["std"])

    def train(self, seed: int, epochs: np.ndarray, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of training `rows`, augmented as of `epochs`. For B rows:
        {pixel_values (B, channels, size, size) float32, normalised}, labels (B,) int64."""
        keys = [derive(seed, "augment", int(epoch), int(row)) for epoch, row in zip(epochs, rows, strict=True)]
        images, labels = self.read("training", rows)
        views = [self.views.augmented(image, key) for image, key in zip(images, keys, strict=True)]
        return {"pixel_values": torch.stack(views)}, labels

    def evaluate(self, seed: int, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of evaluation `rows`, never augmented, whatever the seed; shapes as in `train`."""
        images, labels = self.read("evaluation", rows)
        return {"pixel_values": torch.stack([self.views.plain(image) for image in images])}, labels

    def read(self, split: str, rows: np.ndarray) -> tuple[list[PIL.Image.Image], torch.Tensor]:
        """Decoded images, upright, grey or RGB as the channels ask, and labels. Raises UserError on a damaged one."""
        stored = self.splits[split][rows]
        mode = "RGB" if self.facts["channels"] == 3 else "L"
        images = []
        for row, encoded in zip(rows, stored["image"], strict=True):
            try:
                images.append(_decoded(encoded["bytes"], mode))
            except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:  # Syntax: broken PNG
                named = f" ({encoded['path']})" if encoded["path"] else ""
                raise UserError(
                    f"{split} image {row}{named}: cannot be decoded ({one_line(error)}); repair or remove it and "
                    "prepare again"
                ) from error
        return images, torch.tensor(stored["label"], dtype=torch.int64)


def _decoded(encoded: bytes, mode: str) -> PIL.Image.Image:
    """An image, upright. Grey levels of 16 bits are brought to 8, which Pillow's own conversion cuts off at 255."""
    image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded)))
    if image.mode.startswith("I"):
        image = PIL.Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range nothing says")
    return image.convert(mode)


def _open_split(path: Path, rows: int) -> datasets.Dataset:
    try:
        stored = datasets.load_from_disk(str(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot read it ({one_line(error)}); remove its folder and prepare again") from error
    if len(stored) != rows:
        raise UserError(f"{path}: {len(stored):,} images, not {rows:,}; remove its folder and prepare again")
    return stored
