"""Damage to checkpoints and runs: one bit, or a pickle that leaves a mark, sealed again as whoever means harm would."""

from pathlib import Path

import torch

from pipeline.checkpoints import manifest
from pipeline.records.file_hashes import record
from tests.helpers.checkpoints import reseal


class Malicious:
    """Leaves a mark where it is unpickled by anything that executes code."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def poison(file: Path, mark: Path) -> None:
    """Put a `Malicious` into a file of torch's, beside what it holds."""
    content = torch.load(file, weights_only=False)
    torch.save({**content, "more": Malicious(mark)}, file)


def flip(file: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def sealed_again(checkpoint: Path) -> None:
    """Its manifest agrees with its files again."""
    content = manifest.parse(checkpoint / manifest.NAME)
    files = {name: record(checkpoint / name, file.algorithm).model_dump() for name, file in content.files.items()}
    reseal(checkpoint, {**content.facts(), "provenance": content.provenance, "files": files})
