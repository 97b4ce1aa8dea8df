"""Batches on their way to the device that trains.

To a GPU they are copied from pinned memory in a stream of its own, into two sets of buffers in turn, so that the copy
of a micro-batch runs while the one before is computed, and the memory for it does not grow however far the host is
ahead.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle

import torch
from torch import Tensor


@dataclass
class Batch:
    """One micro-batch of B samples, the tensors' first dimension; the first `valid` count, the rest is padding. labels:
    integers, or (B, classes) float32 probabilities."""

    inputs: dict[str, Tensor]
    labels: Tensor
    valid: int

    def pin_memory(self) -> "Batch":
        """Called by the loader of torch, for a GPU."""
        return replace(
            self, inputs={n: t.pin_memory() for n, t in self.inputs.items()}, labels=self.labels.pin_memory()
        )


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[tuple[Batch, Batch]]:
    """Each batch as it lies in host memory, and on the device; the latter until the next one is asked for."""
    if device.type != "cuda":
        yield from ((batch, batch) for batch in batches)
        return
    stream = torch.cuda.Stream(device)
    for batch, slot in zip(batches, cycle([_Slot(device, stream), _Slot(device, stream)]), strict=False):
        yield batch, slot.filled(batch)
        slot.used.record()


@dataclass
class _Slot:
    """Buffers for one batch. copied: when it is there; used: when all was given to the device that reads it."""

    device: torch.device
    stream: torch.cuda.Stream
    buffers: dict[str, Tensor] = field(default_factory=dict)
    copied: torch.cuda.Event = field(default_factory=torch.cuda.Event)
    used: torch.cuda.Event = field(default_factory=torch.cuda.Event)

    def filled(self, batch: Batch) -> Batch:
        host = {**batch.inputs, "labels": batch.labels}
        self._make_room(host)
        self.stream.wait_event(self.used)
        with torch.cuda.stream(self.stream):
            for name, tensor in host.items():
                self.buffers[name].copy_(tensor, non_blocking=True)
        self.copied.record(self.stream)
        torch.cuda.current_stream(self.device).wait_event(self.copied)
        return Batch({name: self.buffers[name] for name in batch.inputs}, self.buffers["labels"], batch.valid)

    def _make_room(self, host: dict[str, Tensor]) -> None:
        """Memory of the stream that computes, which may still have used it for something else."""
        like = {name: (tensor.shape, tensor.dtype) for name, tensor in host.items()}
        if like != {name: (buffer.shape, buffer.dtype) for name, buffer in self.buffers.items()}:
            self.buffers = {name: torch.empty_like(tensor, device=self.device) for name, tensor in host.items()}
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
