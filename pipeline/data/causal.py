"""Text for causal language modelling: the packed blocks of text.py, each token predicted from those before it.

A row is read as [CLS] … [SEP], as for a masked model, so that both see the same tokens of the same samples. The labels
are the row itself: the position of [CLS] predicts its first token, and so on, so that every token of the corpus is
predicted once in an epoch. The [SEP] behind the row is no label: the text goes on in another block, and a model that
learned to expect an end of text there would learn something wrong. The [SEP]s between documents are labels.
"""

import numpy as np
import torch

from pipeline.data.text import TextSamples


class CausalSamples(TextSamples):
    """Reads the samples of a prepared folder; rows are mapped, not loaded."""

    def train(self, seed: int, epochs: np.ndarray, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of training `rows`, the same in every epoch and under every seed. For B rows and S = block:
        {input_ids (B, S)}, labels (B, S - 2), which the first S - 2 positions predict, both int64; with documents apart
        also documents (B, S), int32: see `document_numbers`."""
        return self._read("training", rows)

    def evaluate(self, seed: int, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Inputs and labels of evaluation `rows`; shapes as in `train`."""
        return self._read("evaluation", rows)

    def _read(self, split: str, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        ids = self.blocks(split, rows)
        labels = torch.from_numpy(np.ascontiguousarray(ids[:, 1:-1]))
        return {"input_ids": torch.from_numpy(ids), **self._documents(ids)}, labels
