"""Growing an image: positions of a larger grid of patches, and larger patches, by interpolation. Never lossless."""

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.growth.maps import DenseMap, SpaceMap
from pipeline.models.architecture import Space


def grid(source: Space, target: Space) -> SpaceMap:
    """Position embeddings of a square grid, bicubic along both sides; the prefix tokens keep their own."""
    before, after = (round((space.size - space.prefix) ** 0.5) for space in (source, target))
    side = _cubic(before, after)
    whole = torch.block_diag(torch.eye(source.prefix, dtype=torch.float64), torch.kron(side, side))
    return SpaceMap(DenseMap(whole), DenseMap(whole), DenseMap(whole))


def pixels(source: int, target: int) -> SpaceMap:
    """A side of the patch kernel. Each old pixel's share is 1 in all, so that a patch of one colour gives the same
    number."""
    cubic = _cubic(source, target)
    side = DenseMap(cubic / cubic.sum(0))
    return SpaceMap(side, side, side)


def _cubic(source: int, target: int) -> Tensor:
    """The (target x source) matrix of torch's bicubic interpolation along one axis."""
    unit = torch.eye(source, dtype=torch.float64)[:, None, None, :]
    return F.interpolate(unit, size=(1, target), mode="bicubic", align_corners=False)[:, 0, 0].T.contiguous()
