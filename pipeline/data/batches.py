"""Batches for the trainer: which samples each rank reads at each step, and the loader that reads them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipeline.config.schema import ImageData, TextData
from pipeline.data.prepared import Prepared
from pipeline.data.sampler import evaluation_numbers, locate, training_numbers
from pipeline.errors import UserError
from pipeline.records.processes import die_with_parent


@dataclass
class Batch:
    """One micro-batch of B samples, in rows of tensors; the first `valid` of them count, the rest are filling."""

    inputs: dict[str, Tensor]
    labels: Tensor
    valid: int


class Numbered(Dataset):
    """A data set that is asked for a whole micro-batch of sample numbers at once."""

    def __init__(self, read: Callable[[np.ndarray], Batch]):
        self.read = read

    def __getitems__(self, numbers: range) -> Batch | UserError:
        try:
            return self.read(np.asarray(numbers))
        except UserError as error:  # handed over, for torch would wrap its one line in a worker's traceback
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
) -> Iterator[Batch]:
    """This rank's micro-batches from optimizer step `first_step` on, batch / (micro_batch * world) a step, endless.

    Raises UserError when the batch does not split evenly.
    """
    if batch % (micro_batch * world):
        raise UserError(
            f"batch {batch} does not split into micro-batches of {micro_batch} on {world} ranks; "
            f"make it a multiple of {micro_batch * world}"
        )
    samples, size = prepared.samples(data.augment if isinstance(data, ImageData) else "none"), prepared.size

    def read(numbers: np.ndarray) -> Batch:
        epochs, rows = locate(seed, numbers, size)
        return Batch(*samples.train(seed, epochs, rows), valid=len(numbers))

    return _load(read, training_numbers(batch, micro_batch, rank, world, first_step), data.workers)


def evaluation_batches(
    prepared: Prepared, data: TextData | ImageData, seed: int, *, micro_batch: int, rank: int, world: int
) -> Iterator[Batch]:
    """This rank's share of the evaluation set: the same samples under the same masks at every call.

    Every rank yields the same number of batches of the same shape; what fills them up repeats samples and does not
    count (`valid`, which may be 0).
    """
    samples, size = prepared.samples(), prepared.facts["evaluation"]

    def read(numbers: np.ndarray) -> Batch:
        return Batch(*samples.evaluate(seed, numbers % size), valid=int((numbers < size).sum()))

    return _load(read, evaluation_numbers(size, micro_batch, rank, world), data.workers)


def _load(read: Callable[[np.ndarray], Batch], numbers: Iterable[range], workers: int) -> Iterator[Batch]:
    loader = DataLoader(
        Numbered(read),
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=_as_is,
        worker_init_fn=_begin,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),  # a loader draws once when it starts; not from the stream that dropout uses
    )
    return _raising(iter(loader))


def _raising(results: Iterator[Batch | UserError]) -> Iterator[Batch]:
    for result in results:
        if isinstance(result, UserError):
            raise result
        yield result


def _as_is(result: Batch | UserError) -> Batch | UserError:
    return result


def _begin(worker: int) -> None:
    """Have the kernel end this worker with its parent; torch's own watch looks every 5 seconds."""
    die_with_parent()
