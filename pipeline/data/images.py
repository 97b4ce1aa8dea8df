"""Images for classification: sources -> stored examples -> pixels.

A prepared folder holds `training/` and `evaluation/`, saved by `datasets`: encoded images (PNG, JPEG) and labels
0..classes-1 in mapped Arrow files, so that any row costs the same and a picture is decoded only when it is read.
"""

import io
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import pyarrow.parquet
import torch

from pipeline.config.schema import ImageData
from pipeline.data import augment, embedded
from pipeline.data.sampler import position
from pipeline.data.sources import from_hub, is_local, local_files, one_line, without
from pipeline.errors import UserError
from pipeline.rng import derive

PICTURES = (".png", ".jpg", ".jpeg")
KNOWN = (".parquet", *PICTURES)
CUT = 0.2
"""The largest share of the images that is cut off for evaluation."""

MEASURED = 4096
"""Images from which mean and standard deviation are taken, at most."""


def build(data: ImageData, seed: int, folder: Path, say: Callable[[str], None]) -> dict:
    """Write both splits into `folder`; returns the facts. Raises UserError."""
    augment.check(data.augment)
    datasets.disable_progress_bars()
    training, evaluation = _sources(data, folder / "cache")
    classes = _classes(training, data)
    training = _labelled(training, classes, data)
    if evaluation is None:
        training, evaluation = _cut(training, data.evaluation_images)
    else:
        evaluation = _labelled(evaluation, classes, data)
        evaluation = _some(evaluation, data.evaluation_images, derive(0, "evaluation images"))
    for name, split in (("training", training), ("evaluation", evaluation)):
        split.save_to_disk(folder / name)
    shutil.rmtree(folder / "cache", ignore_errors=True)
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
    say(f"images: {len(training):,} for training, {len(evaluation):,} for evaluation, {len(classes)} classes")
    return facts | _measure(ImageSamples(folder, facts | {"mean": [0.0], "std": [1.0]}), seed)


def _sources(data: ImageData, cache: Path) -> tuple[datasets.Dataset, datasets.Dataset | None]:
    """(training, held-out or None), with whatever columns and labels the source has."""
    local = data.dataset == "embedded" or is_local(data.dataset)
    if data.subset and local:
        raise UserError(f"data.subset: '{data.subset}' goes with a hub data set, and {data.dataset} is none; remove it")
    held_out = None
    if data.evaluation is not None and is_local(data.evaluation):
        held_out = local_files(data.evaluation, KNOWN)
    elif data.evaluation is not None and local:
        raise UserError(f"{data.evaluation}: no such file or folder; check data.evaluation")
    if data.dataset == "embedded":
        training = _digits(data)
    elif local:
        files = local_files(data.dataset, KNOWN)
        training = _from_files(without(files, held_out) if held_out else files, data, cache)
    else:
        training = from_hub(str(data.dataset), data.subset, "train")
    if held_out:
        return training, _from_files(held_out, data, cache)
    return training, from_hub(str(data.dataset), data.subset, str(data.evaluation)) if data.evaluation else None


def _digits(data: ImageData) -> datasets.Dataset:
    pixels, labels = embedded.digits()
    return _architecture(
        data, [{"bytes": _png(image), "path": None} for image in pixels], [str(label) for label in labels]
    )


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def _architecture(data: ImageData, images: list, labels: list[str]) -> datasets.Dataset:
    features = datasets.Features({data.column: datasets.Image(), data.label: datasets.Value("string")})
    return datasets.Dataset.from_dict({data.column: images, data.label: labels}, features=features)


def _from_files(files: list[Path], data: ImageData, cache: Path) -> datasets.Dataset:
    """Parquet files as they are; pictures with the name of their folder as label."""
    architectures = [file for file in files if file.name.lower().endswith(".parquet")]
    if not architectures:
        return _architecture(data, [str(file) for file in files], [file.parent.name for file in files])
    if len(architectures) < len(files):
        raise UserError(f"{architectures[0]}: parquet files and pictures together; give data.dataset one kind")
    for file in architectures:
        _has_columns(file, data)
    try:
        return datasets.Dataset.from_parquet([str(file) for file in architectures], cache_dir=str(cache))
    except (datasets.exceptions.DatasetsError, pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{architectures[0]}: cannot read the images ({one_line(error.__cause__ or error)})") from error


def _has_columns(file: Path, data: ImageData) -> None:
    try:
        present = pyarrow.parquet.read_schema(file).names
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: cannot read it ({one_line(error)}); it is damaged or no parquet file") from error
    _check_columns(file, present, data)


def _check_columns(where: object, present: list[str], data: ImageData) -> None:
    for key, column in (("column", data.column), ("label", data.label)):
        if column not in present:
            raise UserError(f"{where}: no column '{column}'; it has {', '.join(present)}; set data.{key}")


def _values(split: datasets.Dataset, data: ImageData) -> Sequence[int | str]:
    """The label of each row: a class name where the source knows it, else what stands in the column."""
    _check_columns(data.dataset, split.column_names, data)
    values, kind = split[data.label][:], split.features[data.label]
    wrong = next((value for value in values if not isinstance(value, int | str)), None)
    if wrong is not None or None in values:
        raise UserError(f"{data.dataset}: column '{data.label}' holds {wrong!r}, no class; labels are numbers or names")
    if not isinstance(kind, datasets.ClassLabel):
        return values
    if min(values, default=0) < 0:
        raise UserError(f"{data.dataset}: column '{data.label}' has rows without a class (-1); remove them")
    return [kind.names[value] for value in values]


def _classes(training: datasets.Dataset, data: ImageData) -> list[str]:
    """The class names, in the order of their labels."""
    values = set(_values(training, data))
    if len(values) < 2:
        raise UserError(f"{data.dataset}: images of {len(values)} class; a classifier needs 2 or more; see data.label")
    kind = training.features[data.label]
    return list(kind.names) if isinstance(kind, datasets.ClassLabel) else [str(value) for value in sorted(values)]


def _labelled(split: datasets.Dataset, classes: list[str], data: ImageData) -> datasets.Dataset:
    """The split with two columns: `image` (encoded) and `label` (0..classes-1)."""
    number = {name: place for place, name in enumerate(classes)}
    values = [str(value) for value in _values(split, data)]
    unknown = sorted(set(values) - set(number))
    if unknown:
        raise UserError(f"{data.evaluation}: class '{unknown[0]}' is not among the training images' {len(classes)}")
    try:
        images = split.select_columns([data.column]).cast_column(data.column, datasets.Image(decode=False))
    except (TypeError, ValueError, pa.ArrowException) as error:
        where = f"{data.dataset}: column '{data.column}'"
        raise UserError(f"{where} holds no encoded images ({one_line(error)}); set data.column") from error
    if data.column != "image":
        images = images.rename_column(data.column, "image")
    return images.add_column("label", [number[value] for value in values])


def _cut(images: datasets.Dataset, wanted: int) -> tuple[datasets.Dataset, datasets.Dataset]:
    """(rest, cut): the same for every seed, so that runs with different seeds are scored on the same images."""
    count = min(wanted, int(CUT * len(images)))
    if not count:
        raise UserError(f"{len(images)} images are too few to cut an evaluation set from; give data.evaluation")
    cut = position(derive(0, "evaluation images"), 0, np.arange(count), len(images))
    return images.select(np.setdiff1d(np.arange(len(images)), cut)), images.select(np.sort(cut))


def _some(images: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """At most `count` of the images, a fair sample in order."""
    if count >= len(images):
        return images
    return images.select(np.sort(position(seed, 0, np.arange(count), len(images))))


def _measure(samples: "ImageSamples", seed: int) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel of the training images, pixels in 0 to 1."""
    size, total, squares, pixels = samples.facts["training"], 0.0, 0.0, 0
    for row in position(derive(seed, "mean"), 0, np.arange(min(size, MEASURED)), size):
        (picture,), _ = samples.read("training", row[None])
        values = augment.fit(picture, samples.facts["size"]) / 255.0
        total, squares = total + values.sum(axis=(0, 1)), squares + (values**2).sum(axis=(0, 1))
        pixels += values.shape[0] * values.shape[1]
    mean = total / pixels
    deviation = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    # One grey level is the least an image can differ by: a constant channel stays finite.
    return {"mean": mean.tolist(), "std": np.maximum(deviation, 1 / 255).tolist()}


class ImageSamples:
    """Reads the samples of a prepared folder."""

    def __init__(self, folder: Path, facts: dict, augmentation: str = "none"):
        """Raises UserError when the folder is damaged or the augmentation lacks a package."""
        self.facts = facts
        self.splits = {split: _stored(folder / split, facts[split]) for split in ("training", "evaluation")}
        self.views = augment.Views(augmentation, facts["size"], facts["mean"], facts["std"])

    def train(self, seed: int, epochs: np.ndarray, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of training `rows`, augmented as of `epochs`. For B rows:
        {pixel_values (B, channels, size, size) float32, normalised}, labels (B,) int64."""
        keys = [derive(seed, "augment", int(epoch), int(row)) for epoch, row in zip(epochs, rows, strict=True)]
        pictures, labels = self.read("training", rows)
        views = [self.views.varied(picture, key) for picture, key in zip(pictures, keys, strict=True)]
        return {"pixel_values": torch.stack(views)}, labels

    def evaluate(self, seed: int, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of evaluation `rows`, never augmented, whatever the seed; shapes as in `train`."""
        pictures, labels = self.read("evaluation", rows)
        return {"pixel_values": torch.stack([self.views.plain(picture) for picture in pictures])}, labels

    def read(self, split: str, rows: np.ndarray) -> tuple[list[PIL.Image.Image], torch.Tensor]:
        """Decoded images, upright, grey or RGB as the channels ask, and labels. Raises UserError on a damaged one."""
        stored = self.splits[split][rows]
        mode = "RGB" if self.facts["channels"] == 3 else "L"
        pictures = []
        for row, encoded in zip(rows, stored["image"], strict=True):
            try:
                picture = PIL.Image.open(io.BytesIO(encoded["bytes"]))
                pictures.append(PIL.ImageOps.exif_transpose(picture).convert(mode))
            except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError on a broken PNG
                raise UserError(
                    f"{split} image {row}: cannot be decoded ({one_line(error)}); repair or remove it and prepare again"
                ) from error
        return pictures, torch.tensor(stored["label"], dtype=torch.int64)


def _stored(path: Path, rows: int) -> datasets.Dataset:
    try:
        stored = datasets.load_from_disk(str(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot read it ({one_line(error)}); remove its folder and prepare again") from error
    if len(stored) != rows:
        raise UserError(f"{path}: {len(stored):,} images, not {rows:,}; remove its folder and prepare again")
    return stored
