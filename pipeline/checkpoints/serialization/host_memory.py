"""Memory of the host that a state is copied to, allocated once and used again for each save.

The pages that a process gets are cleared when they are first touched, which takes longer than the copy: `reserve` has
that done beforehand, by a thread. Where the state is a GPU's the pages are pinned.
"""

import ctypes
import mmap
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import UntypedStorage

from pipeline.checkpoints.serialization.amounts import amount
from pipeline.checkpoints.serialization.frozen_tree import FrozenTree, flat
from pipeline.errors import UserError

ALIGNMENT = 64
"""Bytes: where a storage begins, as torch's own allocator has it."""


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass
class Segment:
    """Consecutive bytes, given out from the front. pinned: they are registered with the GPU's driver."""

    pages: mmap.mmap
    used: int = 0
    pinned: bool = False

    @classmethod
    def of(cls, size: int) -> "Segment":
        """Raises UserError where there is not so much memory."""
        try:
            return cls(mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        except OSError as error:
            raise UserError(
                f"{amount(size)} of host memory for a copy of the state are not to be had ({error.strerror}); "
                "set save: blocking in the stage"
            ) from error

    @property
    def size(self) -> int:
        return len(self.pages)

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.pages))

    def touch(self, gpu: int | None) -> None:
        """Have all pages there, pinned for a GPU; what cannot be is copied to more slowly. To be called in a thread of
        its own, whose device that becomes: another one would be opened beside it."""
        ctypes.memset(self.address, 0, self.size)
        if gpu is not None:
            torch.cuda.set_device(gpu)
            self.pinned = int(torch.cuda.cudart().cudaHostRegister(self.address, self.size, 0)) == 0

    def unpin(self) -> None:
        """Before the pages are given back."""
        if self.pinned:
            torch.cuda.cudart().cudaHostUnregister(self.address)
            self.pinned = False

    def take(self, size: int) -> UntypedStorage:
        """The next `size` bytes as a storage."""
        start = self.used
        self.used = start + _aligned(size)
        return torch.frombuffer(self.pages, dtype=torch.uint8, count=size, offset=start).untyped_storage()


@dataclass
class HostMemory:
    """Of one worker. pin: the state is a GPU's."""

    pin: bool = False
    segments: list[Segment] = field(default_factory=list)
    reserving: threading.Thread | None = None

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(segment.size for segment in self.segments)

    def reserve(self, trees: Iterable[FrozenTree]) -> None:
        """Have the pages there that copies of these trees take, some time from now. Raises UserError for too little
        memory."""
        segment = Segment.of(sum(map(_room, trees)))
        self.segments.append(segment)
        gpu = torch.cuda.current_device() if self.pin else None
        self.reserving = threading.Thread(target=segment.touch, args=(gpu,), daemon=True)
        self.reserving.start()

    def reuse(self) -> None:
        """Give all of it out again: what was copied before is not needed any more."""
        if self.reserving is not None:
            self.reserving.join()
            self.reserving = None
        for segment in self.segments:
            segment.used = 0

    def copy(self, tree: FrozenTree) -> FrozenTree:
        """The tree over copies of its storages; those of a GPU's are there once that was synchronised. Raises UserError
        for too little memory."""
        room = _room(tree)
        segment = next((each for each in self.segments if each.size - each.used >= room), None)
        if segment is None:  # more than was reserved: the state has grown
            segment = Segment.of(room)
            self.segments.append(segment)
        return tree.over(partial(self._copied, segment))

    def _copied(self, segment: Segment, storage: UntypedStorage) -> UntypedStorage:
        if not storage.nbytes():
            return torch.empty(0, dtype=torch.uint8).untyped_storage()
        taken = segment.take(storage.nbytes())
        flat(taken).copy_(flat(storage), non_blocking=segment.pinned)
        return taken

    def close(self) -> None:
        """Give the memory back."""
        self.reuse()
        for segment in self.segments:
            segment.unpin()
        self.segments = []


def _room(tree: FrozenTree) -> int:
    """Bytes that its copy takes in a segment."""
    return sum(_aligned(storage.nbytes()) for storage in tree.storages)
