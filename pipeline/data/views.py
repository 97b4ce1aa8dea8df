"""Images on the device that trains: from pixels of 8 bits, with what was drawn for them, to what the model sees."""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data import rand_augment
from pipeline.data.augment import margin


class Views:
    """Augments and normalises micro-batches, (B, channels, size, size)."""

    def __init__(self, mean: list[float], std: list[float]):
        """`mean` and `std` per channel, for pixels in 0 to 1."""
        self.mean, self.std = mean, std

    def finished(self, inputs: dict[str, Tensor], host: dict[str, Tensor]) -> Tensor:
        """float32, normalised, from `pixels` (uint8) and what `augment.drawn` drew, which evaluation lacks. host: the
        same in host memory."""
        pixels, (white, mean, std) = inputs["pixels"], self._constants(inputs["pixels"].device)
        if "shift" in inputs:
            pixels = _shifted(pixels, inputs["shift"])
        if "mirrored" in inputs:
            pixels = torch.where(inputs["mirrored"].view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        images = pixels.float() / white
        if "operations" in inputs:
            # Operations on colour need three channels; three equal ones in give three equal ones out.
            colours = images.expand(-1, 3, -1, -1)
            varied = rand_augment.apply(colours, inputs["operations"], inputs["warps"], host["operations"])
            images = varied[:, : images.shape[1]]
        images = (images - mean) / std
        if "erased" in inputs:  # after normalising 0 is the mean colour
            images = images.masked_fill(inside(inputs["erased"], images.shape[-1]), 0.0)
        return images

    @cache  # noqa: B019 - lives as long as its data
    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The level of white, as a tensor: a GPU multiplies by the reciprocal of a number, which rounds otherwise."""
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))
        return torch.tensor(255.0, device=device), mean, std


def inside(boxes: Tensor, size: int) -> Tensor:
    """(B, 1, size, size) bool: which pixels lie in each of `boxes`, (B, 4) left, top, right, bottom."""
    left, top, right, bottom = boxes.view(-1, 4, 1, 1, 1).unbind(1)
    place = torch.arange(size, device=boxes.device)
    rows, columns = place.view(-1, 1), place
    return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)


def _shifted(pixels: Tensor, shift: Tensor) -> Tensor:
    """shift: (B, 2) rows and columns that are left out of each image with a black margin."""
    size, border = pixels.shape[-1], margin(pixels.shape[-1])
    place = torch.arange(size, device=pixels.device)
    rows, columns = shift[:, :1] + place, shift[:, 1:] + place
    image = torch.arange(len(pixels), device=pixels.device).view(-1, 1, 1)
    moved = F.pad(pixels, (border,) * 4)[image, :, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()
