"""Masking: which tokens of a block a masked language model predicts, and what it reads in their place.

A mask is a pure function of a key and the block: exactly `scored` positions, of which 80 % become [MASK], 10 % another
piece, and 10 % stay (Devlin et al., BERT, 2018, section 3.1). Only ordinary pieces are predicted, and only such are put
in another's place: what the tokenizer calls special ([CLS], [SEP], [PAD], [UNK], [MASK] and any more) stays as it is.
A block that has too few ordinary pieces fills up its `scored` positions with special ones, which keep their token and
have the label IGNORED: shapes are fixed, and the loss is a mean over what counts.

Prepared folders of older releases keep the rules that they were begun with, version 1: every piece but the block's own
[CLS] and [SEP] is predicted, replacements are drawn from the whole vocabulary, and the evaluation set's masks follow
from the run's seed. Version 2 draws these from a constant, so that the same weights have the same loss in every run.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.rng import derive

VERSION = 2
"""Of the rules by which new data are read."""
MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1
"""Of the predicted positions; the rest keeps its token."""
IGNORED = -100
"""The label of a position that does not count, as torch's losses have it."""
EVALUATION_SEED = 0


class Masking:
    """The masks of a prepared folder's blocks, if its tokenizer has a mask token. ordinary: the ids of the pieces that
    are predicted and drawn."""

    def __init__(self, facts: Mapping[str, Any]):
        self._constant_evaluation = facts.get("masking", 1) > 1
        self._special = np.zeros(facts.get("pieces", facts["vocab_size"]), dtype=bool)
        self._special[facts.get("special_ids", [])] = True
        self._mask, self._scored = facts["special"].get("mask"), facts["scored"]
        self.ordinary = np.flatnonzero(~self._special)

    def train_keys(self, seed: int, epochs: np.ndarray, rows: np.ndarray) -> list[int]:
        return [derive(seed, "mask", int(epoch), int(row)) for epoch, row in zip(epochs, rows, strict=True)]

    def evaluation_keys(self, seed: int, rows: np.ndarray) -> list[int]:
        seed = EVALUATION_SEED if self._constant_evaluation else seed
        return [derive(seed, "mask", "evaluation", int(row)) for row in rows]

    def masked(self, ids: np.ndarray, keys: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Blocks (B, S) of ids, [CLS] first and [SEP] last, with a key for each, to (B, S) ids as the model reads them,
        the predicted positions (B, M), ascending, and their labels (B, M), IGNORED where a position does not count."""
        inner = ids[:, 1:-1]
        special = self._special[inner]
        draws = np.stack([np.random.Generator(np.random.Philox(key=key)).random((3, inner.shape[1])) for key in keys])
        chosen = np.sort(np.argsort(draws[:, 0] + special, axis=1)[:, : self._scored], axis=1)
        tokens, counts = np.take_along_axis(inner, chosen, axis=1), ~np.take_along_axis(special, chosen, axis=1)
        action, replacement = (np.take_along_axis(draws[:, number], chosen, axis=1) for number in (1, 2))
        others = self.ordinary[(replacement * len(self.ordinary)).astype(np.int64)]
        unmasked = np.where(action < MASKED_SHARE + RANDOM_SHARE, others, tokens)
        shown = np.where(action < MASKED_SHARE, self._mask, unmasked)
        read, positions = ids.copy(), chosen + 1  # after [CLS]
        np.put_along_axis(read, positions, np.where(counts, shown, tokens), axis=1)
        return read, positions, np.where(counts, tokens, IGNORED)
