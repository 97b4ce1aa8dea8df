"""RandAugment (Cubuk et al., 2020) with kornia's operations, n = 2 and m = 27 of 30 (DeiT's `rand-m9`, of 10).

For each image two different ones of 15 operations are drawn, and which way the geometric ones go. The loader draws; the
device applies: in each of two turns the images of a micro-batch are grouped by operation, so that an operation runs
once for its group. What an image becomes does not depend on the others.
"""

import math
from collections.abc import Callable
from functools import cache
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPERATIONS = (
    *GEOMETRIC,
    "auto_contrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "color",
    "contrast",
    "brightness",
    "sharpness",
)
TURNS, STRENGTH = 2, 27 / 30
DEGREES, SHEAR_DEGREES, TRANSLATION = 30 * STRENGTH, 0.3 * 180 * STRENGTH, 0.1 * STRENGTH
"""The latter is a share of the side."""
BITS, THRESHOLD, ADDITION, FACTOR = int(8 - 4 * STRENGTH), STRENGTH, 0.43 * STRENGTH, 0.1 + 1.8 * STRENGTH
"""Bits that posterize keeps, the level from which solarize inverts, what solarize_add adds before it inverts from 0.5
on, and the factor of color, contrast, brightness and sharpness."""


def drawn(draws: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    """operations: (TURNS,) int64, places in OPERATIONS; warps: (TURNS, 2, 3) float32, for the geometric ones, from
    where in the image each pixel comes: from output to input coordinates, both -1 to 1 between the outermost pixels."""
    operations = np.argsort(draws.random(len(OPERATIONS)), kind="stable")[:TURNS]
    signs = np.where(draws.random(TURNS) < 0.5, 1.0, -1.0)
    warps = [_warp(OPERATIONS[each], sign, size) for each, sign in zip(operations, signs, strict=True)]
    return {"operations": operations.astype(np.int64), "warps": np.array(warps, dtype=np.float32)}


def _warp(operation: str, sign: float, size: int) -> list[list[float]]:
    moved = -sign * TRANSLATION * size * 2 / max(1, size - 1)
    angle, shear = math.radians(sign * DEGREES), math.tan(math.radians(sign * SHEAR_DEGREES))
    sine, cosine = math.sin(angle), math.cos(angle)
    return {
        "rotate": [[cosine, -sine, 0.0], [sine, cosine, 0.0]],
        "shear_x": [[1.0, shear, 0.0], [0.0, 1.0, 0.0]],
        "shear_y": [[1.0, 0.0, 0.0], [shear, 1.0, 0.0]],
        "translate_x": [[1.0, 0.0, moved], [0.0, 1.0, 0.0]],
        "translate_y": [[1.0, 0.0, 0.0], [0.0, 1.0, moved]],
    }.get(operation, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def apply(images: Tensor, operations: Tensor, warps: Tensor, host: Tensor) -> Tensor:
    """images: (B, 3, S, S), float32 in 0 to 1; operations: (B, TURNS), warps: (B, TURNS, 2, 3), of `drawn`; host: the
    operations in host memory, so that nobody waits for the device to learn the sizes of groups."""
    images = images.clone()
    for turn in range(TURNS):
        order = torch.argsort(operations[:, turn], stable=True)
        counts = torch.bincount(host[:, turn], minlength=len(OPERATIONS)).tolist()
        counts[: len(GEOMETRIC)] = [sum(counts[: len(GEOMETRIC)])]  # one group: they differ in the warp alone
        for group, (start, stop) in enumerate(pairwise(accumulate(counts, initial=0))):
            if start == stop:
                continue
            members = order[start:stop]
            chosen = images.index_select(0, members)
            done = _warped(chosen, warps[members, turn]) if group == 0 else _intensities()[group - 1](chosen)
            images.index_copy_(0, members, done)
    return images


def _warped(images: Tensor, warps: Tensor) -> Tensor:
    """What comes from outside of the image is black."""
    grid = F.affine_grid(warps, list(images.shape), align_corners=True)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


@cache
def _intensities() -> list[Callable[[Tensor], Tensor]]:
    """The other operations, in the order of OPERATIONS. Levels and factors are tensors that the device fills: kornia
    would copy a number there, and wait."""
    from kornia import enhance

    def each(images: Tensor, value: float) -> Tensor:
        return images.new_full((len(images),), value)

    return [
        lambda images: enhance.normalize_min_max(images).clamp(0, 1),
        enhance.equalize,
        lambda images: 1 - images,
        lambda images: enhance.posterize(images, each(images, BITS).long()),
        lambda images: enhance.solarize(images, each(images, THRESHOLD)),
        lambda images: enhance.solarize(images, each(images, 0.5), each(images, ADDITION)),
        lambda images: enhance.adjust_saturation(images, each(images, FACTOR)).clamp(0, 1),
        lambda images: enhance.adjust_contrast(images, each(images, FACTOR)),
        lambda images: enhance.adjust_brightness(images, each(images, FACTOR - 1)),
        lambda images: enhance.sharpness(images, each(images, FACTOR)),
    ]
