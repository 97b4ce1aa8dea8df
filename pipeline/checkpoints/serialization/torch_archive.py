"""Files of `torch.save` as streams: a skeleton with placeholders where the numbers go, and what fills each of them.

torch itself writes the skeleton (`skip_data`): a sparse file with everything but the storages' bytes; where each
storage lies is read from the archive's directory. Checksums inside the archive are left at 0, which `torch.load` does
not mind; the manifest holds the digest of the whole file."""

import io
import math
import mmap
import struct
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.serialization import skip_data

from pipeline.checkpoints.serialization.amounts import amount
from pipeline.checkpoints.serialization.byte_stream import Chunks, OutputFile, TensorSlice, tensor_bytes
from pipeline.checkpoints.tensors import InMemoryTensor
from pipeline.errors import ELSEWHERE, UserError, one_line


@dataclass(frozen=True)
class Filling:
    """A placeholder and the slices whose numbers take its place."""

    placeholder: Tensor
    slices: Sequence[TensorSlice]


class TorchArchive:
    """One file in the making: any tree of dicts, lists and plain values, with placeholders for tensors."""

    def __init__(self) -> None:
        self._fillings: dict[int, Filling] = {}

    def placeholder(
        self, slices: Sequence[TensorSlice], shape: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """A tensor of the tree that is filled by `slices`; flat without a `shape`. Its own memory is never touched."""
        shape = (sum(piece.length for piece in slices),) if shape is None else shape
        empty = _addresses(math.prod(shape), dtype).view(shape)
        self._fillings[id(empty)] = Filling(empty, slices)
        return empty

    def value(self, tensor: Tensor) -> Tensor:
        """A small tensor that is here already."""
        slices = [TensorSlice(InMemoryTensor(tensor), 0, tensor.numel())]
        return self.placeholder(slices, tuple(tensor.shape), tensor.dtype)

    def instead(self, placeholder: Tensor, other: Tensor) -> Tensor:
        """Another tensor over the placeholder's memory, which takes its place in the tree."""
        self._fillings[id(other)] = Filling(other, self._fillings.pop(id(placeholder)).slices)
        return other

    def file(self, name: str, tree: dict[str, Any], folder: Path) -> OutputFile:
        """The file `name` below `folder` with the content `tree`."""
        size = sum(f.placeholder.numel() * f.placeholder.itemsize for f in self._fillings.values())
        skeleton = folder / f".skeleton-{name.replace('/', '-')}"
        return OutputFile(name, size, ArchiveContent(tree, self._fillings, skeleton))


@dataclass(frozen=True)
class ArchiveContent:
    """The skeleton's bytes, and in its placeholders those of the slices, in the order of the file."""

    tree: dict[str, Any]
    fillings: dict[int, Filling]
    skeleton: Path

    def chunks(self) -> Chunks:
        with skeleton_written(self.tree, self.skeleton) as (file, offsets):
            for offset, filling in sorted(self._places(offsets).items()):
                yield file.read(offset - file.tell())
                empty = filling.placeholder
                yield from tensor_bytes(filling.slices, empty.dtype)
                file.seek(offset + empty.numel() * empty.itemsize)
            yield file.read()

    def _places(self, offsets: dict[str, int]) -> dict[int, Filling]:
        """Where each placeholder lies: torch numbers storages in the order in which it finds them; tied tensors share
        one."""
        order = list(dict.fromkeys(id(tensor) for tensor in _tensors(self.tree)))
        return {
            offsets[f"data/{number}"]: self.fillings[tensor]
            for number, tensor in enumerate(order)
            if self.fillings[tensor].placeholder.numel()
        }


@contextmanager
def skeleton_written(tree: object, path: Path, way_out: str = ELSEWHERE) -> Iterator[tuple[BinaryIO, dict[str, int]]]:
    """torch's file of `tree` without the numbers of its storages, open for reading, and where each of its records
    begins; it is removed in the end. Raises UserError where it cannot be written."""
    try:
        with skip_data():
            torch.save(tree, path)
        with path.open("rb") as file:
            yield file, _record_offsets(path)
    except RuntimeError as error:  # torch's word for a full disk
        raise UserError(f"{path.parent}: cannot be written ({one_line(error)}); {way_out}") from error
    finally:
        path.unlink(missing_ok=True)


def small_file(name: str, content: object) -> OutputFile:
    """A file of `torch.save` without large tensors."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return OutputFile.of(name, buffer.getvalue())


def _addresses(count: int, dtype: torch.dtype) -> Tensor:
    """A tensor without memory behind it: read-only pages that nobody touches count for no limit but that of
    addresses."""
    if not count:
        return torch.empty(0, dtype=dtype)
    try:
        pages = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    except OSError as error:
        raise UserError(
            f"{amount(count * dtype.itemsize)} of addresses are not to be had ({error.strerror}); "
            "raise the limit (ulimit -v)"
        ) from error
    with warnings.catch_warnings(action="ignore"):  # that it cannot be written to
        return torch.frombuffer(pages, dtype=dtype)


def _record_offsets(path: Path) -> dict[str, int]:
    """Where the bytes of each record of a torch archive begin, by its name inside."""
    offsets = {}
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            names = sum(struct.unpack("<HH", file.read(4)))
            offsets[info.filename.split("/", 1)[1]] = info.header_offset + 30 + names
    return offsets


def _tensors(tree: object) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)
