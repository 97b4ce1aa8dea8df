"""What the loader does to an image, and what it draws for it: a square of `size` pixels of 8 bits, and the parameters
with which the device augments it (views.py).

Every parameter is drawn from one seed per sample, by numpy, so that it depends neither on the loader's workers, nor on
the other images of a micro-batch, nor on resuming.

* shift: moved by up to 12 % of the side (1 pixel at least), the uncovered border black;
* crop-flip: a random part of 8 to 100 % of the area, mirrored half of the time (Szegedy et al., 2015);
* deit: crop-flip, then RandAugment (rand_augment.py) and random erasing as DeiT has them (Touvron et al., 2021, table
  9). DeiT's mixup, cutmix and label smoothing are keys of their own (mixing.py).
"""

import math

import numpy as np
import PIL.Image
import PIL.ImageOps

from pipeline.config.data import Augmentation
from pipeline.data import rand_augment
from pipeline.errors import UserError

BICUBIC = PIL.Image.Resampling.BICUBIC
LARGEST_SHIFT = 0.12
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)
ERASING_PROBABILITY = 0.25
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)
DRAWS = 2
"""Version of what is drawn from a seed. 1: RandAugment and erasing were drawn by kornia, from torch's generator."""


def require(kind: Augmentation) -> None:
    """Raises UserError when the augmentation needs a package that is not installed."""
    if kind != "deit":
        return
    try:
        import kornia.enhance  # noqa: F401  (only whether it can be imported)
    except ImportError as error:
        raise UserError("data.augment 'deit' needs kornia; pip install -e '.[vision]'") from error


def fit(image: PIL.Image.Image, size: int) -> np.ndarray:
    """The largest centred square of the image, resized: (size, size, channels) uint8."""
    return _pixels(PIL.ImageOps.fit(image, (size, size), method=BICUBIC))


def fit_centre(image: PIL.Image.Image, size: int, share: float) -> np.ndarray:
    """The image resized so that its shorter side has size / share pixels, and cut to its centre, as torchvision does
    both: (size, size, channels) uint8."""
    shorter = round(size / share)
    width, height = (shorter * side // min(image.size) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return _pixels(image.resize((width, height), BICUBIC).crop((left, top, left + size, top + size)))


def _pixels(image: PIL.Image.Image) -> np.ndarray:
    values = np.asarray(image)
    return values if values.ndim == 3 else values[:, :, None]


def drawn(image: PIL.Image.Image, kind: Augmentation, size: int, seed: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Pixels (size, size, channels) uint8, and by name what `Views` needs to augment them: a pure function of `seed`.

    shift: (2,) rows and columns that are left out above and to the left, of the image with a margin of `margin(size)`;
    mirrored: (), bool; operations, warps: of `rand_augment.drawn`; erased: (4,) left, top, right, bottom."""
    draws = np.random.Generator(np.random.Philox(key=seed))
    if kind == "none":
        return fit(image, size), {}
    if kind == "shift":
        return fit(image, size), {"shift": (draws.random(2) * (2 * margin(size) + 1)).astype(np.int64)}
    pixels, mirrored = crop(image, size, draws)
    parameters = {"mirrored": np.asarray(mirrored)}
    if kind == "deit":
        parameters |= rand_augment.drawn(draws, size) | {"erased": erased(draws, size)}
    return pixels, parameters


def margin(size: int) -> int:
    """Pixels by which an image is shifted at most."""
    return max(1, round(LARGEST_SHIFT * size))


def crop(image: PIL.Image.Image, size: int, draws: np.random.Generator) -> tuple[np.ndarray, bool]:
    """A random part of the image, resized, (size, size, channels) uint8, and whether it is to be mirrored.

    Cropped and resized in one pass of Pillow, whose filter widens with the reduction; a crop on the device has a filter
    of fixed width, which would alias where the evaluation images are smooth.
    """
    width, height = image.size
    area_draw, ratio_draw, left_draw, top_draw, mirror_draw = draws.random(5)
    area = width * height * (CROP_AREA[0] + area_draw * (CROP_AREA[1] - CROP_AREA[0]))
    ratio = _ratio(ratio_draw, CROP_RATIO)
    crop_width, crop_height = min(width, math.sqrt(area * ratio)), min(height, math.sqrt(area / ratio))
    left, top = left_draw * (width - crop_width), top_draw * (height - crop_height)
    box = (left, top, left + crop_width, top + crop_height)
    return _pixels(image.resize((size, size), BICUBIC, box=box)), bool(mirror_draw < 0.5)


def _ratio(draw: float, bounds: tuple[float, float]) -> float:
    """Uniform in its logarithm."""
    return math.exp(math.log(bounds[0]) + draw * math.log(bounds[1] / bounds[0]))


def erased(draws: np.random.Generator, size: int) -> np.ndarray:
    """(left, top, right, bottom) int64 of what is erased: a quarter of the time 2 to 33 % of the area, else nothing
    (Zhong et al., 2020)."""
    erases, area_draw, ratio_draw, left_draw, top_draw = draws.random(5)
    if erases >= ERASING_PROBABILITY:
        return np.zeros(4, dtype=np.int64)
    area = size * size * (ERASED_AREA[0] + area_draw * (ERASED_AREA[1] - ERASED_AREA[0]))
    ratio = _ratio(ratio_draw, ERASED_RATIO)
    width, height = (min(size, max(1, round(math.sqrt(side)))) for side in (area / ratio, area * ratio))
    left, top = int(left_draw * (size - width + 1)), int(top_draw * (size - height + 1))
    return np.array([left, top, left + width, top + height], dtype=np.int64)
