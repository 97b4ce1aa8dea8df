"""Files of `torch.save` as streams: a skeleton with holes where the numbers go, and what fills each hole.

torch itself writes the skeleton (`skip_data`): a sparse file with everything but the storages' bytes; where each
storage lies is read from the archive's directory. Checksums inside the archive are left at 0, which `torch.load` does not
mind; the manifest holds the SHA-256 of the whole file.
"""

import math
import mmap
import struct
import warnings
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.serialization import skip_data

from pipeline.checkpoints.serialization.byte_stream import Chunks, File, Piece, content
from pipeline.checkpoints.state import LazyTensor
from pipeline.errors import UserError


class Draft:
    """The content of one file: any tree of dicts, lists and plain values, with holes for tensors."""

    def __init__(self):
        self.fills: dict[int, tuple[Tensor, list[Piece]]] = {}

    def hole(
        self, pieces: list[Piece], shape: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """A tensor of the tree that is filled by `pieces`; flat without a `shape`. Its own memory is never touched."""
        shape = (sum(piece.length for piece in pieces),) if shape is None else shape
        empty = _addresses(math.prod(shape), dtype).view(shape)
        self.fills[id(empty)] = empty, pieces
        return empty

    def value(self, tensor: Tensor) -> Tensor:
        """A small tensor that is here already."""
        entry = LazyTensor(tuple(tensor.shape), lambda: tensor)
        return self.hole([Piece(entry, 0, tensor.numel())], tuple(tensor.shape), tensor.dtype)

    def file(self, name: str, tree: dict, folder: Path) -> File:
        size = sum(empty.numel() * empty.itemsize for empty, _ in self.fills.values())
        return File(name, size, partial(self._chunks, tree, folder / f".skeleton-{name.replace('/', '-')}"))

    def _chunks(self, tree: dict, skeleton: Path) -> Chunks:
        """The skeleton's bytes, and in its holes those of the pieces, in the order of the file."""
        try:
            with skip_data():
                torch.save(tree, skeleton)
            with skeleton.open("rb") as file:
                for offset, (empty, pieces) in sorted(self._offsets(tree, skeleton).items()):
                    yield file.read(offset - file.tell())
                    yield from content(pieces, empty.dtype)
                    file.seek(offset + empty.numel() * empty.itemsize)
                yield file.read()
        except RuntimeError as error:  # torch's word for a full disk
            raise UserError(
                f"{skeleton.parent}: cannot be written ({' '.join(str(error).split())[:120]}); make room or choose another place"
            ) from error
        finally:
            skeleton.unlink(missing_ok=True)

    def _offsets(self, tree: dict, skeleton: Path) -> dict[int, tuple[Tensor, list[Piece]]]:
        """Where each hole lies: torch numbers storages in the order in which it meets them; tied tensors share one."""
        met = list(dict.fromkeys(id(tensor) for tensor in _tensors(tree)))
        places = _records(skeleton)
        return {
            places[f"data/{number}"]: self.fills[tensor]
            for number, tensor in enumerate(met)
            if self.fills[tensor][0].numel()
        }


def _addresses(count: int, dtype: torch.dtype) -> Tensor:
    """A tensor without memory behind it: read-only pages that nobody touches count for no limit but that of addresses."""
    if not count:
        return torch.empty(0, dtype=dtype)
    try:
        pages = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ)
    except OSError as error:
        raise UserError(
            f"{count * dtype.itemsize / 2**30:.2f} GiB of addresses are not to be had ({error.strerror}); raise the limit (ulimit -v)"
        ) from error
    with warnings.catch_warnings(action="ignore"):  # that it cannot be written to
        return torch.frombuffer(pages, dtype=dtype)


def _records(path: Path) -> dict[str, int]:
    """Where the bytes of each record of a torch archive begin, by its name inside."""
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        found = {}
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            found[info.filename.split("/", 1)[1]] = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        return found


def _tensors(tree: object) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)
