"""Files of `torch.save` as streams: a skeleton with holes where the numbers go, and what fills each hole.

torch itself writes the skeleton (`skip_data`): a sparse file with everything but the storages' bytes; where each
storage lies is read back from it. Checksums inside the archive are left at 0, which `torch.load` does not mind; the
manifest holds the SHA-256 of the whole file.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.serialization import skip_data

from pipeline.checkpoints.stream import Chunks, File, Piece, content
from pipeline.checkpoints.zero_files import ALLOWED
from pipeline.errors import UserError
from pipeline.state import Entry


class Draft:
    """The content of one file: any tree of dicts, lists and plain values, with holes for tensors."""

    def __init__(self):
        self.mode = FakeTensorMode()
        self.fills: dict[int, tuple[Tensor, list[Piece]]] = {}

    def hole(self, pieces: list[Piece], shape: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of the tree that is filled by `pieces`; flat without a `shape`."""
        with self.mode:
            fake = torch.empty(shape if shape is not None else (sum(piece.length for piece in pieces),), dtype=dtype)
        self.fills[id(fake)] = fake, pieces
        return fake

    def value(self, tensor: Tensor) -> Tensor:
        """A small tensor that is here already."""
        entry = Entry(tuple(tensor.shape), lambda: tensor)
        return self.hole([Piece(entry, 0, tensor.numel())], tuple(tensor.shape), tensor.dtype)

    def file(self, name: str, tree: dict, folder: Path) -> File:
        size = sum(fake.numel() * fake.itemsize for fake, _ in self.fills.values())
        return File(name, size, partial(self._chunks, tree, folder / f".skeleton-{name.replace('/', '-')}"))

    def _chunks(self, tree: dict, skeleton: Path) -> Chunks:
        """The skeleton's bytes, and in its holes those of the pieces, in the order of the file."""
        try:
            with skip_data(materialize_fake_tensors=True):
                torch.save(tree, skeleton)
            with skeleton.open("rb") as file:
                for offset, (fake, pieces) in sorted(self._offsets(tree, skeleton).items()):
                    yield file.read(offset - file.tell())
                    yield from content(pieces, fake.dtype)
                    file.seek(offset + fake.numel() * fake.itemsize)
                yield file.read()
        except RuntimeError as error:  # torch's word for a full disk
            raise UserError(f"{skeleton.parent}: cannot be written ({' '.join(str(error).split())[:120]}); make room or choose another place") from error
        finally:
            skeleton.unlink(missing_ok=True)

    def _offsets(self, tree: dict, skeleton: Path) -> dict[int, tuple[Tensor, list[Piece]]]:
        """Where each hole lies; tied tensors share one."""
        with self.mode, torch.serialization.safe_globals(ALLOWED):
            again = torch.load(skeleton, weights_only=True)
        pairs = zip(_tensors(tree), _tensors(again), strict=True)
        return {there.untyped_storage()._checkpoint_offset: self.fills[id(fake)] for fake, there in pairs if fake.numel()}


def _tensors(tree: object) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)
