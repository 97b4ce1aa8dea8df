"""Images for classification: stored examples -> pixels of 8 bits, as they travel to the device.

A prepared folder holds `training/` and `evaluation/`, saved by `datasets`: encoded images (PNG, JPEG) and labels
0..classes-1 in mapped Arrow files, so that any row costs the same and an image is decoded only when it is read.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow as pa
import torch

from pipeline.config.data import Augmentation
from pipeline.data import augment
from pipeline.data.views import Views
from pipeline.errors import UserError, one_line
from pipeline.rng import derive

if TYPE_CHECKING:
    import datasets

LARGEST_HELD_OUT = 0.2
"""The largest share of the images that is cut off for evaluation."""


class ImageSamples:
    """Reads the samples of a prepared folder."""

    def __init__(
        self, folder: Path, facts: dict[str, Any], augmentation: Augmentation = "none", evaluation_crop: float = 1.0
    ):
        """Raises UserError when the folder is damaged or the augmentation needs a package that is not installed."""
        self.facts = facts
        self.splits = {split: _open_split(folder / split, facts[split]) for split in ("training", "evaluation")}
        augment.require(augmentation)
        self.augmentation, self.views = augmentation, Views(facts["mean"], facts["std"])
        self.evaluation_crop = evaluation_crop

    def train(
        self, seed: int, epochs: np.ndarray, rows: np.ndarray, views: np.ndarray | None = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of training `rows`, augmented as of `epochs`, before they are `finished`. For B rows:
        {pixels (B, channels, size, size) uint8, what else `augment.drawn` drew}, labels (B,) int64. views: which view
        of its image each one is; default: the first."""
        views = np.zeros_like(rows) if views is None else views
        keys = [_augmentation(seed, *map(int, each)) for each in zip(epochs, rows, views, strict=True)]
        images, labels = self._read_once("training", rows)
        drawn = [
            augment.drawn(each, self.augmentation, self.facts["size"], key)
            for each, key in zip(images, keys, strict=True)
        ]
        pixels, parameters = zip(*drawn, strict=True)
        stacked = {name: torch.from_numpy(np.stack([each[name] for each in parameters])) for name in parameters[0]}
        return {"pixels": _stacked(pixels), **stacked}, labels

    def evaluate(self, seed: int, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of evaluation `rows`, never augmented, whatever the seed; shapes as in `train`."""
        images, labels = self.read("evaluation", rows)
        return {"pixels": _stacked([self._fitted(image) for image in images])}, labels

    def _fitted(self, image: PIL.Image.Image) -> np.ndarray:
        size = self.facts["size"]
        if self.evaluation_crop == 1:
            return augment.fit(image, size)
        return augment.fit_centre(image, size, self.evaluation_crop)

    def finished(self, inputs: dict[str, torch.Tensor], host: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the model takes, from inputs of `train` or `evaluate` on its device: {pixel_values (B, channels, size,
        size) float32, normalised}. host: the same in host memory."""
        return {"pixel_values": self.views.finished(inputs, host)}

    def _read_once(self, split: str, rows: np.ndarray) -> tuple[list[PIL.Image.Image], torch.Tensor]:
        """As `read`, where rows that are given several times are decoded once."""
        different, places = np.unique(rows, return_inverse=True)
        if len(different) == len(rows):
            return self.read(split, rows)
        images, labels = self.read(split, different)
        return [images[place] for place in places], labels[torch.from_numpy(places)]

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


def _augmentation(seed: int, epoch: int, row: int, view: int) -> int:
    """The seed of what is drawn for a view of an image."""
    return derive(seed, "augment", epoch, row, *([view] if view else []))


def _stacked(pixels: Sequence[np.ndarray]) -> torch.Tensor:
    """Of (H, W, channels): (B, channels, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pixels).transpose(0, 3, 1, 2)))


def _decoded(encoded: bytes, mode: str) -> PIL.Image.Image:
    """An image, upright. Grey levels of 16 bits are brought to 8, which Pillow's own conversion cuts off at 255."""
    image = PIL.ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(encoded)))
    if image.mode.startswith("I"):
        image = PIL.Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range nothing says")
    return image.convert(mode)


def _open_split(path: Path, rows: int) -> "datasets.Dataset":
    import datasets  # a second that the training of text does without

    try:
        stored = datasets.load_from_disk(str(path))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot read it ({one_line(error)}); remove its folder and prepare again") from error
    if len(stored) != rows:
        raise UserError(f"{path}: {len(stored):,} images, not {rows:,}; remove its folder and prepare again")
    return stored
