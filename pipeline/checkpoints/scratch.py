"""Tensors in mapped files of a temporary folder: their pages are the file's, so memory does not grow with the model."""

import shutil
from pathlib import Path

import torch
from torch import Tensor


class Scratch:
    """Hands out tensors that are zero until written. The folder must not exist; `remove` deletes it."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        folder.mkdir(parents=True)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        size = torch.Size(shape).numel()
        if not size:
            return torch.empty(shape, dtype=dtype)
        self.count += 1
        return torch.from_file(str(self.folder / str(self.count)), shared=True, size=size, dtype=dtype).view(shape)

    def remove(self) -> None:
        shutil.rmtree(self.folder)
