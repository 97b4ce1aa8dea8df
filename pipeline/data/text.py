"""Text for masked language modelling, as it lies in a prepared folder: packed blocks -> masked samples.

Packing: the documents' tokens are joined with [SEP], cut into rows of block - 2 tokens, and each row is read as
[CLS] … [SEP]. There is no padding; only the tail that fills no block is lost. A prepared folder has

    training.bin evaluation.bin    row after row of block - 2 ids, uint16 where the vocabulary fits
    tokenizer/                     see tokenizers.py

Masking happens when a sample is read, as a pure function of (seed, epoch, row): exactly `scored` positions, of which
80 % become [MASK], 10 % a random id, and 10 % stay (Devlin et al., BERT, 2018, section 3.1). The evaluation set has
one mask per row, whatever the epoch.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.packing import id_type
from pipeline.errors import UserError
from pipeline.rng import derive

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1
"""Of the predicted positions; the rest keeps its token."""


class TextSamples:
    """Reads the samples of a prepared folder; rows are mapped, not loaded."""

    def __init__(self, folder: Path, facts: dict[str, Any]):
        """Raises UserError when a file does not have the size that follows from `facts`."""
        self.facts = facts
        self.rows = {split: _mapped_rows(folder, split, facts) for split in ("training", "evaluation")}

    def train(self, seed: int, epochs: np.ndarray, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of training `rows`, masked as of `epochs`. For B rows, S = block and M = scored:
        {input_ids (B, S), masked_positions (B, M)}, labels (B, M), all int64."""
        keys = [derive(seed, "mask", int(epoch), int(row)) for epoch, row in zip(epochs, rows, strict=True)]
        return self._masked(self.rows["training"][rows], keys)

    def evaluate(self, seed: int, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of evaluation `rows`, always under the same mask; shapes as in `train`."""
        keys = [derive(seed, "mask", "evaluation", int(row)) for row in rows]
        return self._masked(self.rows["evaluation"][rows], keys)

    def _masked(self, tokens: np.ndarray, keys: list[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        special, scored = self.facts["special"], self.facts["scored"]
        ids = np.empty((len(tokens), self.facts["block"]), dtype=np.int64)
        ids[:, 0], ids[:, 1:-1], ids[:, -1] = special["cls"], tokens, special["sep"]
        draws = np.stack([np.random.Generator(np.random.Philox(key=key)).random((3, tokens.shape[1])) for key in keys])
        predicted = np.sort(np.argsort(draws[:, 0], axis=1)[:, :scored], axis=1)
        positions = predicted + 1  # after [CLS]
        labels = np.take_along_axis(ids, positions, axis=1)
        action, replacement = (np.take_along_axis(draws[:, number], predicted, axis=1) for number in (1, 2))
        random_ids = (replacement * self.facts["vocab_size"]).astype(np.int64)
        unmasked = np.where(action < MASKED_SHARE + RANDOM_SHARE, random_ids, labels)
        np.put_along_axis(ids, positions, np.where(action < MASKED_SHARE, special["mask"], unmasked), axis=1)
        inputs = {"input_ids": torch.from_numpy(ids), "masked_positions": torch.from_numpy(positions)}
        return inputs, torch.from_numpy(labels)


def _mapped_rows(folder: Path, split: str, facts: dict[str, Any]) -> np.ndarray:
    """(rows, block - 2) ids of a split, mapped."""
    path, dtype, shape = folder / f"{split}.bin", id_type(facts["vocab_size"]), (facts[split], facts["block"] - 2)
    expected = math.prod(shape) * dtype.itemsize
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        raise UserError(
            f"{path}: {size:,} bytes, not {expected:,}; the file is damaged: remove its folder and prepare again"
        )
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)
