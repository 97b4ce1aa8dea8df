"""What a file of `torch.save` is going to hold, frozen at one moment: the numbers are storages, all else is pickled.

torch's own reductions decide what is pickled, so nothing that `torch.save` would keep gets lost: tensors that share a
storage share it still, classes, attributes and strides are kept. The file is written later, as a stream.
"""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, UntypedStorage
from torch.storage import TypedStorage

from pipeline.checkpoints.serialization.byte_stream import CHUNK, Chunks, OutputFile
from pipeline.checkpoints.serialization.torch_archive import skeleton_written
from pipeline.errors import ELSEWHERE


class _Freezer(pickle.Pickler):
    """Takes the storages out, each once, in the order in which torch finds them too."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file, protocol=2)
        self.storages: dict[int, UntypedStorage] = {}
        self.numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> tuple[int, torch.dtype | None] | None:
        if isinstance(obj, TypedStorage):
            return self._number(obj._untyped_storage), obj.dtype
        return (self._number(obj), None) if isinstance(obj, UntypedStorage) else None

    def _number(self, storage: UntypedStorage) -> int:
        number = self.numbers.setdefault(storage._cdata, len(self.numbers))
        self.storages[number] = storage
        return number


class _Thawer(pickle.Unpickler):
    """Puts storages in their places."""

    def __init__(self, file: io.BytesIO, storages: Sequence[UntypedStorage]):
        super().__init__(file)
        self.storages = storages

    def persistent_load(self, pid: tuple[int, torch.dtype | None]) -> Any:
        number, dtype = pid
        storage = self.storages[number]
        return storage if dtype is None else TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


@dataclass(frozen=True)
class FrozenTree:
    """One file's content. pickled: all but the numbers, made by this process and read by no other."""

    pickled: bytes
    storages: Sequence[UntypedStorage]

    @classmethod
    def of(cls, tree: Any) -> "FrozenTree":
        """The tree as it is now, over its own storages."""
        buffer = io.BytesIO()
        freezer = _Freezer(buffer)
        freezer.dump(tree)
        return cls(buffer.getvalue(), list(freezer.storages.values()))

    @property
    def size(self) -> int:
        """Bytes of all numbers."""
        return sum(storage.nbytes() for storage in self.storages)

    def over(self, copied: Callable[[UntypedStorage], UntypedStorage]) -> "FrozenTree":
        """The same over copies of the storages."""
        return replace(self, storages=[copied(storage) for storage in self.storages])

    def thawed(self) -> Any:
        """The tree, over the storages that are held here."""
        return _Thawer(io.BytesIO(self.pickled), self.storages).load()

    def file(self, name: str, folder: Path, way_out: str = ELSEWHERE) -> OutputFile:
        """The file `name` below `folder` with this content, as `torch.save` writes it. way_out: where it cannot be
        written."""
        skeleton = folder / f".skeleton-{name.replace('/', '-')}"
        return OutputFile(name, self.size + len(self.pickled), FrozenContent(self, skeleton, way_out))


@dataclass(frozen=True)
class FrozenContent:
    """The bytes of the file: those that torch writes around the numbers, and the numbers in their places. The checksums
    inside the archive are 0, as in `torch_archive`."""

    tree: FrozenTree
    skeleton: Path
    way_out: str

    def chunks(self) -> Chunks:
        with skeleton_written(self.tree.thawed(), self.skeleton, self.way_out) as (file, offsets):
            for number, storage in enumerate(self.tree.storages):
                start = offsets[f"data/{number}"]
                yield file.read(start - file.tell())
                yield from _bytes(storage)
                file.seek(start + storage.nbytes())
            yield file.read()


def _bytes(storage: UntypedStorage) -> Chunks:
    if storage.nbytes():
        for chunk in flat(storage).split(4 * CHUNK):
            yield memoryview(chunk.cpu().numpy())


def flat(storage: UntypedStorage) -> Tensor:
    """The bytes of a storage as a tensor, (nbytes,)."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
