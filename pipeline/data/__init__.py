"""Data: prepare once, then read batches that are a pure function of (seed, step).

    prepared = prepare(config.data, config.seed, folder)
    batches = train_batches(
        prepared, config.data, config.seed, batch=64, micro_batch=8, rank=rank, world=world, first_step=step
    )

Files, in the order of the data's way: sources (what a config names) -> documents, census, tokenizers, packing,
text_building, text, masking, causal | images, augment -> prepared (the folder) -> blocks (as a stage reads it),
held_out (what is evaluated) -> sampler (the order of the samples) -> batches (the loader) -> on_device, views,
rand_augment, mixing (what is done to a batch there).
"""

from pipeline.data.batches import evaluation_batches, train_batches
from pipeline.data.blocks import as_read, data_of
from pipeline.data.held_out import evaluated
from pipeline.data.masking import IGNORED
from pipeline.data.on_device import Batch
from pipeline.data.prepared import Prepared, open_prepared, prepare
from pipeline.data.sampler import evaluation_passes

__all__ = [
    "IGNORED",
    "Batch",
    "Prepared",
    "as_read",
    "data_of",
    "evaluated",
    "evaluation_batches",
    "evaluation_passes",
    "open_prepared",
    "prepare",
    "train_batches",
]
