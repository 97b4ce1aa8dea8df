"""Mixup, cutmix and label smoothing: training images in pairs, and labels that are shares of classes.

The sample at position n of the run is mixed with that at n ^ 1, its neighbour in an order that is drawn anew for each
epoch; in what shares is drawn from n. So ranks and micro-batches change no pair: where a micro-batch ends between two
neighbours, the loader reads the other one too.

* mixup: both images are blended, a share of Beta(alpha, alpha) of the one (Zhang et al., 2018);
* cutmix: a rectangle of the one is replaced by the same place of the other, such that a share of Beta(alpha, alpha)
  stays, less where it sticks out (Yun et al., 2019);
* where both are on, each sample draws which, half and half, as DeiT does.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.config.data import ImageData, TextData
from pipeline.data.views import inside
from pipeline.rng import derive

PREFIX = "mix_"


@dataclass(frozen=True)
class Mixing:
    """What is done to the finished images of a micro-batch. mixup, cutmix: alpha, 0 where it is off."""

    mixup: float
    cutmix: float
    smoothing: float
    classes: int
    size: int

    @staticmethod
    def of(data: TextData | ImageData, facts: dict[str, int]) -> "Mixing | None":
        """None where labels stay what they are."""
        if not isinstance(data, ImageData) or not (data.mixup or data.cutmix or data.label_smoothing):
            return None
        return Mixing(data.mixup, data.cutmix, data.label_smoothing, facts["classes"], facts["size"])

    @property
    def pairs(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def with_partners(self, numbers: np.ndarray) -> np.ndarray:
        """Positions to read: `numbers`, and behind them the partners that are not among these."""
        return np.concatenate([numbers, np.setdiff1d(numbers ^ 1, numbers)]) if self.pairs else numbers

    def drawn(self, seed: int, numbers: np.ndarray) -> dict[str, Tensor]:
        """For B positions: mix_partner (B,), the place of each one's partner among `with_partners`; mix_weight (B,),
        the share that its own pixels keep outside of mix_box (B, 4), inside of which they keep none; mix_share (B,), of
        its own label."""
        if not self.pairs:
            return {}
        place = {int(number): at for at, number in enumerate(self.with_partners(numbers))}
        partners = torch.tensor([place[int(number) ^ 1] for number in numbers])
        weights, boxes, shares = zip(*(self._draw(derive(seed, "mix", int(number))) for number in numbers), strict=True)
        values = {
            "partner": partners,
            "weight": torch.tensor(weights),
            "box": torch.from_numpy(np.stack(boxes)),
            "share": torch.tensor(shares),
        }
        return {f"{PREFIX}{name}": value for name, value in values.items()}

    def _draw(self, seed: int) -> tuple[float, np.ndarray, float]:
        """(weight outside of the box, box, share of the label) of one sample."""
        draws = np.random.Generator(np.random.Philox(key=seed))
        which, centre = draws.random(), draws.random(2)
        cuts = which < 0.5 if self.mixup and self.cutmix else bool(self.cutmix)
        alpha = self.cutmix if cuts else self.mixup
        share = float(draws.beta(alpha, alpha))
        if not cuts:
            return share, np.zeros(4, dtype=np.int64), share
        side, (column, row) = int(self.size * np.sqrt(1 - share)), (centre * self.size).astype(np.int64)
        corners = [column - side // 2, row - side // 2, column - side // 2 + side, row - side // 2 + side]
        box = np.clip(np.array(corners, dtype=np.int64), 0, self.size)
        return 1.0, box, 1 - float((box[2] - box[0]) * (box[3] - box[1])) / self.size**2

    def finished(self, images: Tensor, labels: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """images, labels: of all positions that were read; inputs: with those of `drawn`. Returns (B, channels, size,
        size) and the shares of classes, (B, classes) float32."""
        shares = F.one_hot(labels, self.classes).float() * (1 - self.smoothing) + self.smoothing / self.classes
        if not self.pairs:
            return images, shares
        partner, weight, box, share = (inputs[f"{PREFIX}{name}"] for name in ("partner", "weight", "box", "share"))
        count, own = len(partner), share.view(-1, 1)
        kept = torch.where(inside(box, self.size), 0.0, weight.view(-1, 1, 1, 1))
        mixed = images[:count] * kept + images[partner] * (1 - kept)
        return mixed, shares[:count] * own + shares[partner] * (1 - own)
