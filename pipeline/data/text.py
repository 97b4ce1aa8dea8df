"""Text for masked language modelling: documents -> tokens -> packed blocks -> masked samples.

Packing: the documents' tokens are joined with [SEP], cut into rows of block - 2 tokens, and each row is read as
[CLS] … [SEP]. There is no padding; only the tail that fills no block is lost. A prepared folder has

    training.bin evaluation.bin    row after row of block - 2 ids, uint16 where the vocabulary fits
    tokenizer/                     see tokenizers.py

Masking happens when a sample is read, as a pure function of (seed, epoch, row): exactly `scored` positions, of which
80 % become [MASK], 10 % a random id, and 10 % stay (Devlin et al., BERT, 2018, section 3.1). The evaluation set has
one mask per row, whatever the epoch.
"""

import logging
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config.schema import TextData
from pipeline.data import tokenizers
from pipeline.data.documents import Census, Corpus, corpora, fingerprint, hold_out
from pipeline.errors import UserError
from pipeline.rng import derive

logger = logging.getLogger(__name__)

MASKED_SHARE, RANDOM_SHARE = 0.8, 0.1
"""Of the predicted positions; the rest keeps its token."""

CHARACTERS_PER_TOKEN = 12
"""More than tokenizers reach, so that the held-out text fills its evaluation blocks before its tokens are counted."""

DOCUMENTS_AT_ONCE = 256
TOKENS_AT_ONCE = 1 << 22


def build(data: TextData, seed: int, folder: Path) -> dict[str, Any]:
    """Write the tokenizer and both streams into `folder`; returns the facts. Raises UserError."""
    training, evaluation = corpora(data)
    census = Census.of(training)
    logger.info(
        f"text: {len(census.characters):,} documents, {int(census.characters.sum()):,} characters in {training.name}"
    )
    held_out = (
        [] if evaluation else hold_out(training, census, CHARACTERS_PER_TOKEN * data.evaluation_blocks * data.block)
    )
    learned_from = _learning_text(training.without(held_out), census)
    tokenizer = tokenizers.create(data.tokenizer, learned_from, folder / "tokenizer")
    logger.info(f"tokenizer: {data.tokenizer.kind}, {tokenizer.size:,} pieces")
    if evaluation is None:
        used = _first(held_out, tokenizer, data.evaluation_blocks * (data.block - 2))
        training, evaluation = training.without(used), Corpus(f"{training.name}, held out", lambda: used)
    evaluation_blocks = pack(evaluation, tokenizer, data.block, folder / "evaluation.bin", most=data.evaluation_blocks)
    _require_blocks(evaluation_blocks, data.evaluation_blocks, data, evaluation.name)
    training_blocks = pack(training, tokenizer, data.block, folder / "training.bin")
    _require_blocks(training_blocks, 1, data, training.name)
    logger.info(
        f"packed: {training_blocks:,} training blocks of {data.block} tokens, {evaluation_blocks:,} evaluation blocks"
    )
    facts = {
        "kind": "text",
        "vocab_size": tokenizer.size,
        "block": data.block,
        "scored": data.scored,
        "tokens_per_sample": data.block,
        "training": training_blocks,
        "evaluation": evaluation_blocks,
        "documents": len(census.characters),
        "special": tokenizer.special,
    }
    return facts | _context_free(TextSamples(folder, facts), seed)


def _learning_text(corpus: Corpus, census: Census) -> Iterator[str]:
    """About LEARN_FROM characters of the documents, selected by their fingerprints."""
    share = min(1.0, tokenizers.LEARN_FROM / int(census.characters.sum()))
    # The low bits: hold_out() selects by the high ones, and the two selections must be independent.
    return (document for document in corpus if (fingerprint(document) & 0xFFFFFFFF) < share * 2**32)


def _first(documents: list[str], tokenizer: tokenizers.Tokenizer, tokens: int) -> list[str]:
    """As many of the first `documents` as give `tokens`; the others return to the training text."""
    total = 0
    for count, document in enumerate(documents):
        if total >= tokens:
            return documents[:count]
        total += len(tokenizer.encode([document])[0])
    return documents


def _require_blocks(blocks: int, required: int, data: TextData, where: str) -> None:
    if blocks >= required:
        return
    filled = f"{where}: the text fills {blocks} blocks of {data.block} tokens"
    if required == 1:
        raise UserError(f"{filled}; lower data.block or give more text")
    lower = f"lower data.evaluation_blocks to {blocks}" if blocks else "lower data.block"
    raise UserError(f"{filled}, and data.evaluation_blocks asks for {required}; {lower} or give more text")


def id_type(vocab_size: int) -> np.dtype[Any]:
    """The dtype in which ids are stored: uint16 where the vocabulary fits, else uint32."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def pack(
    corpus: Iterable[str], tokenizer: tokenizers.Tokenizer, block: int, path: Path, most: int | None = None
) -> int:
    """Write the tokens of `corpus` as whole rows of block - 2 ids (at most `most` rows); returns how many."""
    width, rows = block - 2, 0
    pending = np.empty(0, dtype=id_type(tokenizer.size))
    with path.open("wb") as file:
        for ids in _encoded(corpus, tokenizer):
            pending = np.concatenate([pending, np.asarray(ids, dtype=pending.dtype)])
            whole = len(pending) // width
            if most is not None:
                whole = min(whole, most - rows)
            file.write(pending[: whole * width].tobytes())
            pending = pending[whole * width :]
            rows += whole
            if rows == most:
                break
    return rows


def _encoded(corpus: Iterable[str], tokenizer: tokenizers.Tokenizer) -> Iterator[list[int]]:
    """The ids of `corpus`, [SEP] between two documents, DOCUMENTS_AT_ONCE at a time."""
    documents, first = iter(corpus), True
    while batch := list(islice(documents, DOCUMENTS_AT_ONCE)):
        joined: list[int] = []
        for ids in filter(None, tokenizer.encode(batch)):
            joined += ids if first else [tokenizer.special["sep"], *ids]
            first = False
        yield joined


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


def _context_free(samples: TextSamples, seed: int) -> dict[str, float]:
    """What a predictor without context reaches on the evaluation set, nats per token.

    `unigram_entropy`: the entropy of the evaluation rows' own distribution, the bound of all such predictors on
    these rows. `unigram_cross_entropy`: the training rows' distribution (add-one smoothed) on the evaluation labels.
    """
    vocab_size = samples.facts["vocab_size"]
    counts = _counts(samples.rows["evaluation"], vocab_size)
    share = counts[counts > 0] / counts.sum()
    smoothed = _counts(samples.rows["training"], vocab_size) + 1.0
    log_share = np.log(smoothed / smoothed.sum())
    _, labels = samples.evaluate(seed, np.arange(samples.facts["evaluation"]))
    return {
        "unigram_entropy": float(-(share * np.log(share)).sum()),
        "unigram_cross_entropy": float(-log_share[labels.numpy()].mean()),
    }


def _counts(rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """(vocab_size,): how often each id occurs, TOKENS_AT_ONCE at a time."""
    counts, step = np.zeros(vocab_size, dtype=np.int64), max(1, TOKENS_AT_ONCE // rows.shape[1])
    for start in range(0, len(rows), step):
        counts += np.bincount(rows[start : start + step].ravel(), minlength=vocab_size)
    return counts
