"""Batches for the trainer: which samples each rank reads at each step, and the loader that reads them."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.config.schema import Augmentation, ImageData, TextData
from pipeline.data.images import ImageSamples
from pipeline.data.prepared import Prepared
from pipeline.data.sampler import evaluation_numbers, locate, training_numbers
from pipeline.data.text import TextSamples
from pipeline.errors import UserError
from pipeline.records.processes import be_a_helper


@dataclass
class Batch:
    """One micro-batch of B samples, the tensors' first dimension; the first `valid` count, the rest is padding."""

    inputs: dict[str, Tensor]
    labels: Tensor
    valid: int


class MicroBatches(Dataset[Batch]):
    """A data set whose loader asks for a whole micro-batch of sample numbers at once."""

    def __init__(self, read: Callable[[np.ndarray], Batch]):
        self.read = read

    def __getitems__(self, numbers: list[int]) -> Batch | UserError:
        try:
            return self.read(np.asarray(numbers))
        except UserError as error:  # returned, because torch would wrap its one line in a worker's traceback
            return error


def train_batches(
    prepared: Prepared,
    data: TextData | ImageData,
    seed: int,
    *,
    batch: int,
    micro_batch: int,
    rank: int,
    world: int,
    first_step: int,
    first_sample: int = 0,
) -> Iterator[Batch]:
    """This rank's micro-batches from optimizer step `first_step` on, batch / (micro_batch * world) a step, endless.
    first_sample: the number of the first one that step 0 takes.

    Raises UserError when the batch does not split evenly.
    """
    if batch % (micro_batch * world):
        raise UserError(
            f"batch {batch} does not split into micro-batches of {micro_batch} on {world} ranks; "
            f"choose a multiple of {micro_batch * world}"
        )
    samples, size = _samples(prepared, data, data.augment if isinstance(data, ImageData) else "none"), prepared.size

    def read(numbers: np.ndarray) -> Batch:
        epochs, rows = locate(seed, numbers, size)
        return Batch(*samples.train(seed, epochs, rows), valid=len(numbers))

    return _load(read, training_numbers(batch, micro_batch, rank, world, first_step, first_sample), data.workers)


def evaluation_batches(
    prepared: Prepared, data: TextData | ImageData, seed: int, *, micro_batch: int, rank: int, world: int
) -> Iterator[Batch]:
    """This rank's share of the evaluation set: the same samples under the same masks at every call.

    Every rank yields the same number of batches of the same shape: the last ones are padded with samples that do not
    count (see `Batch.valid`, which may be 0).
    """
    samples, size = _samples(prepared, data), prepared.facts["evaluation"]

    def read(numbers: np.ndarray) -> Batch:
        return Batch(*samples.evaluate(seed, numbers % size), valid=int((numbers < size).sum()))

    return _load(read, evaluation_numbers(size, micro_batch, rank, world), data.workers)


def _samples(
    prepared: Prepared, data: TextData | ImageData, augmentation: Augmentation = "none"
) -> TextSamples | ImageSamples:
    return prepared.samples(augmentation, isinstance(data, ImageData) or data.cross_document)


def _load(read: Callable[[np.ndarray], Batch], numbers: Iterable[range], workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        MicroBatches(read),
        batch_sampler=cast(Iterable[list[int]], numbers),  # torch passes each to __getitems__ unchanged
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=partial(_end_with_parent, os.getpid()),
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # a loader draws a seed when it starts; not from the generator that dropout uses
    )
    return _without_errors(iter(loader))


def _without_errors(results: Iterator[Batch | UserError]) -> Iterator[Batch]:
    """Raises the first UserError among `results`."""
    for result in results:
        if isinstance(result, UserError):
            raise result
        yield result


def _unchanged(result: Any) -> Any:
    """Samples come as a batch: there is nothing to collate. (A function, because workers pickle no lambda.)"""
    return result


def _end_with_parent(parent: int, worker: int) -> None:
    """Have the kernel end this worker with its parent; torch itself looks for the parent every 5 seconds."""
    be_a_helper(parent)
