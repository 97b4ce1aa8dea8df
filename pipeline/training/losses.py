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


def per_sample(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (B, V) or (B, M, V) and labels (B) or (B, M) to the loss of each sample, its share of right answers, both
    means over its labels that count, and whether it has any; (B,), in float32, whatever the logits are. Where none
    counts loss and share are 0."""
    losses = F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED
    ).view(len(labels), -1)
    counted = (labels != IGNORED).view(len(labels), -1)
    hits = (logits.argmax(-1) == labels).view(len(labels), -1)
    count = counted.sum(1)
    return losses.sum(1) / count.clamp(min=1), hits.sum(1) / count.clamp(min=1), (count > 0).float()
