"""The same tiny training task for our engine and for plain PyTorch."""

import torch

from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.config.schema import TrainStage
from pipeline.data import Batch

BATCH, ROUNDS = 8, 2
"""Samples per step, and the micro-batches in which a rank takes its share."""
TEXT = {"kind": "text", "vocab_size": 61, "block": 14, "scored": 3}
IMAGES = {"kind": "images", "size": 8, "channels": 3, "class_names": ["a", "b", "c"]}


def model_config(name: str, **more: float):
    """more: sizes that are to be others."""
    family = models.family(name)
    text = family.data == "text"
    mlp = 48 if name.startswith("dinov2") else 40
    shape = {"layers": 2, "hidden": 24, "heads": 3, "mlp": mlp, "patch": None if text else 4} | more
    sizes = ModelSizes(family=name, **shape)
    return family.configure(sizes, TEXT if text else IMAGES)


def stage(**fields) -> TrainStage:
    """Clipping that bites, and a decay large enough that the two groups matter."""
    optimizer = {"clip": 0.5, "weight_decay": 0.3, "betas": [0.9, 0.95], "eps": 1e-6}
    shared = {"kind": "train", "name": "t", "model": "m", "batch": BATCH, "optimizer": optimizer}
    schedule = {"peak": 1e-3, "horizon": "10 steps"}
    return TrainStage.model_validate(
        {**shared, "schedule": schedule, "micro_batch": fields.pop("micro_batch"), **fields}
    )


def batch(name: str, step: int, first: int, count: int, apart: bool = False) -> Batch:
    """Samples `first` to `first + count` of a step's global batch. apart: of text, of several documents each, that are
    kept apart."""
    generator = torch.Generator().manual_seed(step)
    mine = slice(first, first + count)
    if models.family(name).data == "images":
        pixels = torch.randn(BATCH, 3, 8, 8, generator=generator)
        return Batch({"pixel_values": pixels[mine]}, torch.randint(3, (BATCH,), generator=generator)[mine], count)
    ids = torch.randint(61, (BATCH, 14), generator=generator)
    positions = torch.rand(BATCH, 14, generator=generator).argsort(1)[:, :3]
    inputs = {"input_ids": ids[mine], "masked_positions": positions[mine]}
    if apart:
        inputs["documents"] = (torch.rand(BATCH, 14, generator=generator) < 0.2).cumsum(1).int()[mine]
    if models.family(name).objective == "causal-lm":
        del inputs["masked_positions"]
        return Batch(inputs, ids[mine, 1:-1].contiguous(), count)
    return Batch(inputs, ids.gather(1, positions)[mine], count)
