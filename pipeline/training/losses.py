"""From a micro-batch to what a model is called with, and from its logits to the loss of every sample."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import models
from pipeline.data import IGNORED, Batch
from pipeline.models.document_mask import document_mask
from pipeline.training.cross_entropy import cross_entropy


def model_inputs(batch: Batch, model: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """A micro-batch's inputs on the device, the numbers of its documents, where it has them, as a mask of attention for
    `model`, in the dtype of its weights. Positions go on from document to document; a causal model is told so, for OPT
    would count them by the mask."""
    inputs = {name: value.to(device) for name, value in batch.inputs.items()}
    if (documents := inputs.pop("documents", None)) is not None:
        causal = models.is_causal(model.config)
        inputs["attention_mask"] = document_mask(documents, next(model.parameters()).dtype, causal)
        if causal:
            inputs["position_ids"] = torch.arange(documents.shape[1], device=device)[None]
    return inputs


def loss_per_sample(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (B, V) or (B, M, V) and labels (B), or (B, L) of the first L positions, to the loss of each sample, the
    mean over its labels that count, 0 where none does; (B,), in float32, whatever the logits are. Labels of floats are
    shares of classes, (B, V). The backward pass overwrites the logits."""
    if labels.is_floating_point():
        return F.cross_entropy(logits.float(), labels, reduction="none")
    logits, labels = _by_position(logits, labels)
    return cross_entropy(logits, labels).sum(1) / (labels != IGNORED).sum(1).clamp(min=1)


def per_sample(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`loss_per_sample`, the share of right answers among the labels that count, and whether there are any; (B,)."""
    logits, labels = _by_position(logits, labels)
    count = (labels != IGNORED).sum(1)
    hits = (logits[:, : labels.shape[1]].argmax(-1) == labels).sum(1)
    return loss_per_sample(logits, labels), hits / count.clamp(min=1), (count > 0).float()


def _by_position(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, M, V) and (B, L), of classes too."""
    return (logits, labels) if labels.dim() == 2 else (logits.unsqueeze(1), labels.unsqueeze(1))
