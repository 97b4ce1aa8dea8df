"""Text for masked language modelling, as it lies in a prepared folder: packed blocks -> masked samples.

Packing: the documents' tokens are joined with [SEP], cut into rows of block - 2 tokens, and each row is read as
[CLS] … [SEP]. There is no padding; only the tail that fills no block is lost. A prepared folder has

    training.bin evaluation.bin    row after row of block - 2 ids, uint16 where the vocabulary fits
    tokenizer/                     see tokenizers.py

Masking happens when a sample is read, as a pure function of (seed, epoch, row): see masking.py. The evaluation set has
one mask per row, whatever the epoch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.data.masking import Masking
from pipeline.data.packing import id_type
from pipeline.errors import UserError


class TextSamples:
    """Reads the samples of a prepared folder; rows are mapped, not loaded."""

    def __init__(self, folder: Path, facts: dict[str, Any], cross_document: bool = True):
        """cross_document: whether tokens attend to other documents of their block. Raises UserError when a file does
        not have the size that follows from `facts`."""
        self.facts, self.cross_document, self.masking = facts, cross_document, Masking(facts)
        self.rows = {split: mapped_rows(folder, split, facts) for split in ("training", "evaluation")}

    def train(self, seed: int, epochs: np.ndarray, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of training `rows`, masked as of `epochs`. For B rows, S = block and M = scored:
        {input_ids (B, S), masked_positions (B, M)}, labels (B, M), all int64, a label IGNORED where it does not count;
        with documents apart also documents (B, S), int32: see `document_numbers`."""
        return self._masked("training", rows, self.masking.train_keys(seed, epochs, rows))

    def evaluate(self, seed: int, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of evaluation `rows`, always under the same mask; shapes as in `train`. seed: of the run,
        which the masks of data of older releases follow."""
        return self._masked("evaluation", rows, self.masking.evaluation_keys(seed, rows))

    def _masked(self, split: str, rows: np.ndarray, keys: list[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        ids = self.blocks(split, rows)
        read, positions, labels = self.masking.masked(ids, keys)
        inputs = {"input_ids": torch.from_numpy(read), "masked_positions": torch.from_numpy(positions)}
        return {**inputs, **self._documents(ids)}, torch.from_numpy(labels)

    def _documents(self, ids: np.ndarray) -> dict[str, torch.Tensor]:
        """What tells the documents of blocks apart, where they are to be."""
        if self.cross_document:
            return {}
        return {"documents": torch.from_numpy(document_numbers(ids, self.facts["special"]["sep"]))}

    def blocks(self, split: str, rows: np.ndarray) -> np.ndarray:
        """(B, S) ids of rows of a split, int64, [CLS] first and [SEP] last."""
        special, tokens = self.facts["special"], self.rows[split][rows]
        ids = np.empty((len(tokens), self.facts["block"]), dtype=np.int64)
        ids[:, 0], ids[:, 1:-1], ids[:, -1] = special["cls"], tokens, special["sep"]
        return ids


def document_numbers(ids: np.ndarray, separator: int) -> np.ndarray:
    """(B, S) ids to the number of the document that each belongs to, int32, 0 for the first of a block. A separator
    ends its document and belongs to it; what stands in front of the first token belongs to the first document."""
    numbers = np.zeros(ids.shape, dtype=np.int32)
    np.cumsum(ids[:, :-1] == separator, axis=1, out=numbers[:, 1:])
    return numbers


def mapped_rows(folder: Path, split: str, facts: dict[str, Any]) -> np.ndarray:
    """(rows, block - 2) ids of a split, mapped; the file may have been cut into others (see blocks.py). Raises
    UserError when it has another size."""
    path, dtype = folder / f"{split}.bin", id_type(facts.get("pieces", facts["vocab_size"]))
    shape, stored = (facts[split], facts["block"] - 2), facts.get("stored", facts)
    expected = stored[split] * (stored["block"] - 2) * dtype.itemsize
    size = path.stat().st_size if path.exists() else 0
    if size != expected:
        raise UserError(
            f"{path}: {size:,} bytes, not {expected:,}; the file is damaged: remove its folder and prepare again"
        )
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)
