"""From a micro-batch to what a model is called with, and from its logits to the loss of every sample."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import models
from pipeline.data import IGNORED, Batch
from pipeline.models.document_mask import document_mask


def model_inputs(batch: Batch, model: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """A micro-batch's inputs on the device, the numbers of its documents, where it has them, as a mask of attention for
    `model`, in the dtype of its weights."""
    inputs = {name: value.to(device) for name, value in batch.inputs.items()}
    if (documents := inputs.pop("documents", None)) is not None:
        causal = models.is_causal(model.config)
        inputs["attention_mask"] = document_mask(documents, next(model.parameters()).dtype, causal)
    return inputs


def loss_per_sample(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, V) or (B, M, V) and labels (B) or (B, M) to the loss of each sample, the mean over its labels that
    count, 0 where none does; (B,), in float32, whatever the logits are. Labels of floats are shares of classes,
    (B, V)."""
    if labels.is_floating_point():
        return F.cross_entropy(logits.float(), labels, reduction="none")
    losses = F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED
    ).view(len(labels), -1)
    return losses.sum(1) / _counted(labels).sum(1).clamp(min=1)


def per_sample(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`loss_per_sample`, the share of right answers among the labels that count, and whether there are any; (B,)."""
    counted = _counted(labels)
    count = counted.sum(1)
    hits = (logits.argmax(-1) == labels).view(len(labels), -1)
    return loss_per_sample(logits, labels), hits.sum(1) / count.clamp(min=1), (count > 0).float()


def _counted(labels: Tensor) -> Tensor:
    return (labels != IGNORED).view(len(labels), -1)
