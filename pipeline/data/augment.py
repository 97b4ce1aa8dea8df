"""What an image becomes before the model sees it: a square of `size`, normalised, augmented in training.

Every augmentation draws from one seed per sample, so that it depends neither on the loader's workers nor on resuming.

* shift: moved by up to 12 % of the side (1 pixel at least), the uncovered border black;
* crop-flip: a random part of 8 to 100 % of the area, mirrored half of the time (Szegedy et al., 2015);
* deit: crop-flip, then RandAugment and random erasing as DeiT has them (Touvron et al., 2021, table 9), by kornia.
  DeiT's mixup and cutmix need soft labels and are not part of it.
"""

import math

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from pipeline.config.schema import Augmentation
from pipeline.errors import UserError

BICUBIC = PIL.Image.Resampling.BICUBIC
LARGEST_SHIFT = 0.12
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
OPERATIONS, MAGNITUDE = 2, 27
"""RandAugment n = 2 at nine tenths of kornia's scale, which ends at 30: DeiT's `rand-m9`, of 10."""

ERASING_PROBABILITY = 0.25


def require(kind: Augmentation) -> None:
    """Raises UserError when the augmentation needs a package that is not installed."""
    if kind != "deit":
        return
    try:
        import kornia.augmentation  # noqa: F401  (only whether it can be imported)
    except ImportError as error:
        raise UserError("data.augment 'deit' needs kornia; pip install -e '.[vision]'") from error


def fit(image: PIL.Image.Image, size: int) -> np.ndarray:
    """The largest centred square of the image, resized: (size, size, channels) uint8."""
    return _pixels(PIL.ImageOps.fit(image, (size, size), method=BICUBIC))


def _pixels(image: PIL.Image.Image) -> np.ndarray:
    values = np.asarray(image)
    return values if values.ndim == 3 else values[:, :, None]


class Views:
    """Turns images into normalised float32 tensors (channels, size, size)."""

    def __init__(self, kind: Augmentation, size: int, mean: list[float], std: list[float]):
        """`mean` and `std` per channel, for pixels in 0 to 1. Raises UserError when a package is missing."""
        require(kind)
        self.kind, self.size = kind, size
        self.mean, self.std = (torch.tensor(value).view(-1, 1, 1) for value in (mean, std))
        if kind == "deit":
            from kornia.augmentation import RandomErasing
            from kornia.augmentation.auto import RandAugment

            self.policy = RandAugment(n=OPERATIONS, m=MAGNITUDE)
            self.erasing = RandomErasing(p=ERASING_PROBABILITY)

    def plain(self, image: PIL.Image.Image) -> torch.Tensor:
        """The image as an evaluation sees it."""
        return self._normalised(_scaled(fit(image, self.size)))

    def augmented(self, image: PIL.Image.Image, seed: int) -> torch.Tensor:
        """The image as training sees it: a pure function of `seed`."""
        if self.kind == "none":
            return self.plain(image)
        draws = np.random.Generator(np.random.Philox(key=seed))
        if self.kind == "shift":
            return self._normalised(_scaled(shift(fit(image, self.size), draws)))
        cropped = _scaled(crop_flip(image, self.size, draws))
        return self._normalised(cropped) if self.kind == "crop-flip" else self._deit(cropped, seed)

    def _deit(self, pixels: torch.Tensor, seed: int) -> torch.Tensor:
        channels = pixels.shape[0]
        with torch.random.fork_rng(devices=[]):  # kornia draws from torch's global generator: seed it here only
            torch.default_generator.manual_seed(seed)
            # Its colour operations need three channels; three equal ones in give three equal ones out.
            pixels = self.policy(pixels.expand(3, -1, -1)[None])[0, :channels]
            erased: torch.Tensor = self.erasing(
                self._normalised(pixels)[None]
            )  # after normalising 0 is the mean colour
            return erased[0]

    def _normalised(self, pixels: torch.Tensor) -> torch.Tensor:
        return (pixels - self.mean) / self.std


def _scaled(pixels: np.ndarray) -> torch.Tensor:
    """(H, W, C) uint8 -> (C, H, W) float32 in 0 to 1."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32, order="C")) / 255


def shift(pixels: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """(H, W, C) moved by a whole number of pixels in each direction."""
    height, width, _ = pixels.shape
    margin = max(1, round(LARGEST_SHIFT * height))
    top, left = (int(draw * (2 * margin + 1)) for draw in draws.random(2))
    return np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)))[top : top + height, left : left + width]


def crop_flip(image: PIL.Image.Image, size: int, draws: np.random.Generator) -> np.ndarray:
    """A random part of the image, resized and perhaps mirrored: (size, size, channels) uint8.

    Cropped and resized in one pass of Pillow, whose filter widens with the reduction; kornia's crop has a filter of
    fixed width, which would alias where the evaluation images are smooth.
    """
    width, height = image.size
    area_draw, ratio_draw, left_draw, top_draw, mirror_draw = draws.random(5)
    area = width * height * (CROP_AREA[0] + area_draw * (CROP_AREA[1] - CROP_AREA[0]))
    ratio = math.exp(math.log(CROP_RATIO[0]) + ratio_draw * math.log(CROP_RATIO[1] / CROP_RATIO[0]))
    crop_width, crop_height = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = left_draw * (width - crop_width), top_draw * (height - crop_height)
    pixels = _pixels(image.resize((size, size), BICUBIC, box=(left, top, left + crop_width, top + crop_height)))
    return pixels[:, ::-1] if mirror_draw < 0.5 else pixels
