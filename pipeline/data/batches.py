"""Batches for the trainer: which samples each rank reads at each step, and the loader that reads them."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.config.data import Augmentation, ImageData, TextData
from pipeline.data.held_out import evaluated
from pipeline.data.images import ImageSamples
from pipeline.data.mixing import Mixing
from pipeline.data.on_device import Batch, on_device
from pipeline.data.prepared import Prepared
from pipeline.data.sampler import evaluation_numbers, locate, seen, training_numbers
from pipeline.data.text import TextSamples
from pipeline.errors import UserError
from pipeline.records.processes import Helpers, be_a_helper

CPU = torch.device("cpu")


class MicroBatches(Dataset[Batch | UserError]):
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
    device: torch.device = CPU,
) -> Iterator[Batch]:
    """This rank's micro-batches from optimizer step `first_step` on, batch / (micro_batch * world) a step, endless, on
    the device that trains. first_sample: the number of the first one that step 0 takes.

    Raises UserError when the batch does not split evenly.
    """
    if batch % (micro_batch * world):
        raise UserError(
            f"batch {batch} does not split into micro-batches of {micro_batch} on {world} ranks; "
            f"choose a multiple of {micro_batch * world}"
        )
    samples, size = _samples(prepared, data, data.augment if isinstance(data, ImageData) else "none"), prepared.size
    mixing = Mixing.of(data, prepared.facts)

    def read(numbers: np.ndarray) -> Batch:
        places, views = seen(mixing.with_partners(numbers) if mixing else numbers, data.repeats)
        epochs, rows = locate(seed, places, size)
        own = (views,) if isinstance(samples, ImageSamples) else ()
        inputs, labels = samples.train(seed, epochs, rows, *own)
        return Batch(inputs | (mixing.drawn(seed, numbers) if mixing else {}), labels, valid=len(numbers))

    numbers = training_numbers(batch, micro_batch, rank, world, first_step, first_sample)
    return iter(Batches(_loader(read, numbers, data.workers, device), samples, device, mixing))


def evaluation_batches(
    prepared: Prepared,
    data: TextData | ImageData,
    seed: int,
    *,
    micro_batch: int,
    rank: int,
    world: int,
    device: torch.device = CPU,
) -> "Batches":
    """This rank's share of the evaluation set: the same samples under the same masks each time that it is gone through,
    by the same workers.

    Every rank yields the same number of batches of the same shape: the last ones are padded with samples that do not
    count (see `Batch.valid`, which may be 0).
    """
    samples, rows = _samples(prepared, data), evaluated(data.evaluate, data.kind, prepared.facts["evaluation"])
    size = len(rows)

    def read(numbers: np.ndarray) -> Batch:
        return Batch(*samples.evaluate(seed, rows[numbers % size]), valid=int((numbers < size).sum()))

    numbers = list(evaluation_numbers(size, micro_batch, rank, world))
    return Batches(_loader(read, numbers, data.workers, device, again=True), samples, device)


def _samples(
    prepared: Prepared, data: TextData | ImageData, augmentation: Augmentation = "none"
) -> TextSamples | ImageSamples:
    if isinstance(data, ImageData):
        return prepared.samples(augmentation, evaluation_crop=data.evaluation_crop)
    return prepared.samples(cross_document=data.cross_document)


@dataclass(frozen=True)
class Batches:
    """What a loader reads, on the device that trains."""

    loader: Iterable[Batch | UserError]
    samples: TextSamples | ImageSamples
    device: torch.device
    mixing: Mixing | None = None

    def __iter__(self) -> Iterator[Batch]:
        return map(self._finished, on_device(_without_errors(self.loader), self.device))

    def _finished(self, both: tuple[Batch, Batch]) -> Batch:
        """The batch of a model from the one that was read, which lies in host memory and on the device."""
        (host, copy), samples = both, self.samples
        if not isinstance(samples, ImageSamples):
            return copy
        inputs, labels = samples.finished(copy.inputs, host.inputs), copy.labels
        if self.mixing:
            inputs["pixel_values"], labels = self.mixing.finished(inputs["pixel_values"], labels, copy.inputs)
        return Batch(inputs, labels, copy.valid)


def _loader(
    read: Callable[[np.ndarray], Batch],
    numbers: Iterable[range],
    workers: int,
    device: torch.device,
    again: bool = False,
) -> DataLoader[Batch | UserError]:
    """again: whether it is gone through more than once, by the same workers."""
    return DataLoader(
        MicroBatches(read),
        batch_sampler=cast(Iterable[list[int]], numbers),  # torch passes each to __getitems__ unchanged
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=partial(_end_with_parent, os.getpid()),
        multiprocessing_context=Helpers() if workers else None,
        generator=torch.Generator(),  # a loader draws a seed when it starts; not from the generator that dropout uses
        persistent_workers=again and workers > 0,
        pin_memory=device.type == "cuda",
    )


def _without_errors(results: Iterable[Batch | UserError]) -> Iterator[Batch]:
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
