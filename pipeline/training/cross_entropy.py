"""The cross-entropy of labels, in float32 whatever the logits are, without a copy of them.

A language model's logits are its largest activation: 4,096 tokens of a vocabulary of 151,936 are 1.2 GB in bf16, and
2.5 GB more in float32 for the loss, and again for its gradient. So the loss is taken a part at a time, and the gradient
is written into the place of the logits, which nobody reads behind the loss.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.data import IGNORED

PART = 2**25
"""Numbers of the logits that are in float32 at a time."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Of every label, (B, L), float32, 0 where it is IGNORED. logits: (B, S, V); labels: (B, L) of the first L
    positions. The backward pass overwrites the logits; torch refuses a second one."""
    return CrossEntropy.apply(logits, labels)  # type: ignore[no-any-return, no-untyped-call]


class CrossEntropy(torch.autograd.Function):
    """See `cross_entropy`."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        values = torch.empty(labels.shape, dtype=torch.float32, device=logits.device)
        for part in _parts(logits, labels):
            scores, targets = logits[part].float().flatten(0, 1), labels[part]
            losses = F.cross_entropy(scores, targets.flatten(), reduction="none", ignore_index=IGNORED)
            values[part] = losses.view_as(targets)
        ctx.save_for_backward(logits, labels)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The probabilities, less 1 at the label, times the gradient of the label's loss."""
        logits, labels = ctx.saved_tensors
        gradient, factors = logits.detach(), gradients[0] * (labels != IGNORED)
        for part in _parts(logits, labels):
            slope, targets = gradient[part].float().softmax(-1), labels[part].clamp(min=0).unsqueeze(-1)
            slope.scatter_add_(-1, targets, slope.new_full((), -1.0).expand_as(targets))
            gradient[part] = slope.mul_(factors[part].unsqueeze(-1))
        gradient[:, labels.shape[1] :] = 0
        return gradient, None


def _parts(logits: Tensor, labels: Tensor) -> Iterator[tuple[slice, slice]]:
    """Samples and positions that have a label, about PART numbers of the logits at a time: several samples, or some
    positions of one."""
    samples, length = labels.shape
    positions = max(1, min(length, PART // logits.shape[-1]))
    together = max(1, PART // (length * logits.shape[-1]))
    for sample in range(0, samples, together):
        for position in range(0, length, positions):
            yield slice(sample, sample + together), slice(position, min(position + positions, length))
