"""Text for masked language modelling: documents -> tokens -> packed blocks -> masked samples.

Packing: the documents' tokens are joined with [SEP] into one stream, cut into pieces of block - 2 tokens and each
wrapped as [CLS] … [SEP]. Nothing is padding; only the tail that fills no block is lost. A prepared folder holds

    training.bin evaluation.bin    the streams, row after row of block - 2 ids, uint16 where the vocabulary fits
    tokenizer/                     see tokenizers.py

Masking happens when a sample is read, as a pure function of (seed, epoch, row): exactly `scored` positions, of which
80 % become [MASK], 10 % a random id, and 10 % stay (Devlin et al., BERT, 2018, section 3.1). The evaluation set has
one mask per row, whatever the epoch.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from pipeline.config.schema import TextData
from pipeline.data import tokenizers
from pipeline.data.documents import Census, Corpus, corpora, fingerprint, hold_out
from pipeline.errors import UserError
from pipeline.rng import derive

MASKED, RANDOM = 0.8, 0.1
CHARACTERS_PER_TOKEN = 12
"""More than tokenizers reach, so that the text set aside for evaluation fills its blocks before tokens are known."""

DOCUMENTS_AT_ONCE = 256
TOKENS_AT_ONCE = 1 << 22


def build(data: TextData, seed: int, folder: Path, say: Callable[[str], None]) -> dict:
    """Write the tokenizer and both streams into `folder`; returns the facts. Raises UserError."""
    training, evaluation = corpora(data)
    census = Census.of(training)
    say(f"text: {len(census.characters):,} documents, {int(census.characters.sum()):,} characters in {training.name}")
    aside = [] if evaluation else hold_out(training, census, CHARACTERS_PER_TOKEN * data.evaluation_blocks * data.block)
    pieces = tokenizers.make(data.tokenizer, _to_learn_from(training.without(aside), census), folder / "tokenizer")
    say(f"tokenizer: {data.tokenizer.kind}, {pieces.size:,} pieces")
    if evaluation is None:
        used = _first(aside, pieces, data.evaluation_blocks * (data.block - 2))
        training, evaluation = training.without(used), Corpus(f"{training.name}, held out", lambda: used)
    scored = pack(evaluation, pieces, data.block, folder / "evaluation.bin", most=data.evaluation_blocks)
    _enough(scored, data.evaluation_blocks, data, evaluation.name)
    blocks = pack(training, pieces, data.block, folder / "training.bin")
    _enough(blocks, 1, data, training.name)
    say(f"packed: {blocks:,} training blocks of {data.block} tokens, {scored:,} evaluation blocks")
    facts = {
        "kind": "text",
        "vocab_size": pieces.size,
        "block": data.block,
        "scored": data.scored,
        "tokens_per_sample": data.block,
        "training": blocks,
        "evaluation": scored,
        "documents": len(census.characters),
        "special": pieces.special,
    }
    return facts | _context_free(TextSamples(folder, facts), seed)


def _to_learn_from(corpus: Corpus, census: Census) -> Iterator[str]:
    """A share of the documents, chosen by their content, of about LEARN_FROM characters."""
    share = min(1.0, tokenizers.LEARN_FROM / int(census.characters.sum()))
    # The low bits: hold_out() goes by the high ones, and the choices should not be linked.
    return (document for document in corpus if (fingerprint(document) & 0xFFFFFFFF) < share * 2**32)


def _first(documents: list[str], pieces: tokenizers.Pieces, tokens: int) -> list[str]:
    """As many of the first `documents` as hold `tokens`; the others go back to the training text."""
    held = 0
    for count, document in enumerate(documents):
        if held >= tokens:
            return documents[:count]
        held += len(pieces.encode([document])[0])
    return documents


def _enough(found: int, needed: int, data: TextData, where: str) -> None:
    if found >= needed:
        return
    filled = f"{where}: the text fills {found} blocks of {data.block} tokens"
    if needed == 1:
        raise UserError(f"{filled}; lower data.block or give more text")
    lower = f"lower data.evaluation_blocks to {found}" if found else "lower data.block"
    raise UserError(f"{filled}, and data.evaluation_blocks asks for {needed}; {lower} or give more text")


def id_type(vocab_size: int) -> np.dtype:
    """The smallest type that holds the ids."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


def pack(corpus: Iterable[str], pieces: tokenizers.Pieces, block: int, path: Path, most: int | None = None) -> int:
    """Write the stream of `corpus`, cut to whole rows of block - 2 ids (at most `most` rows); returns the rows."""
    width, rows = block - 2, 0
    pending = np.empty(0, dtype=id_type(pieces.size))
    with path.open("wb") as file:
        for ids in _stream(corpus, pieces):
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


def _stream(corpus: Iterable[str], pieces: tokenizers.Pieces) -> Iterator[list[int]]:
    """The tokens of `corpus`, [SEP] between two documents, some documents at a time."""
    documents, first = iter(corpus), True
    while batch := list(islice(documents, DOCUMENTS_AT_ONCE)):
        stream: list[int] = []
        for ids in filter(None, pieces.encode(batch)):
            stream += ids if first else [pieces.special["sep"], *ids]
            first = False
        yield stream


class TextSamples:
    """Reads the samples of a prepared folder; rows are mapped, not loaded."""

    def __init__(self, folder: Path, facts: dict):
        """Raises UserError when a stream has not the size that `facts` tell."""
        self.facts = facts
        self.rows = {split: _mapped(folder, split, facts) for split in ("training", "evaluation")}

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
        chosen = np.sort(np.argsort(draws[:, 0], axis=1)[:, :scored], axis=1)
        positions = chosen + 1  # past [CLS]
        labels = np.take_along_axis(ids, positions, axis=1)
        action, other = (np.take_along_axis(draws[:, part], chosen, axis=1) for part in (1, 2))
        drawn = (other * self.facts["vocab_size"]).astype(np.int64)
        shown = np.where(action < MASKED, special["mask"], np.where(action < MASKED + RANDOM, drawn, labels))
        np.put_along_axis(ids, positions, shown, axis=1)
        inputs = {"input_ids": torch.from_numpy(ids), "masked_positions": torch.from_numpy(positions)}
        return inputs, torch.from_numpy(labels)


def _mapped(folder: Path, split: str, facts: dict) -> np.ndarray:
    path, kind, rows, width = folder / f"{split}.bin", id_type(facts["vocab_size"]), facts[split], facts["block"] - 2
    expected = rows * width * kind.itemsize
    found = path.stat().st_size if path.exists() else 0
    if found != expected:
        raise UserError(
            f"{path}: {found:,} bytes, not {expected:,}; the file is damaged: remove its folder and prepare again"
        )
    return np.memmap(path, dtype=kind, mode="r", shape=(rows, width))


def _context_free(samples: TextSamples, seed: int) -> dict[str, float]:
    """What a predictor without context reaches on the evaluation set, nats per token.

    `unigram_entropy`: the entropy of the evaluation rows' own distribution, the bound of all such predictors on
    these rows. `unigram_cross_entropy`: the training rows' distribution (add-one smoothed) on the evaluation labels.
    """
    vocab_size = samples.facts["vocab_size"]
    own = _counts(samples.rows["evaluation"], vocab_size)
    share = own[own > 0] / own.sum()
    smoothed = _counts(samples.rows["training"], vocab_size) + 1.0
    log_share = np.log(smoothed / smoothed.sum())
    _, labels = samples.evaluate(seed, np.arange(samples.facts["evaluation"]))
    return {
        "unigram_entropy": float(-(share * np.log(share)).sum()),
        "unigram_cross_entropy": float(-log_share[labels.numpy()].mean()),
    }


def _counts(rows: np.ndarray, vocab_size: int) -> np.ndarray:
    """How often each id occurs, counted a part at a time."""
    step = max(1, TOKENS_AT_ONCE // rows.shape[1])
    parts = (rows[start : start + step].ravel() for start in range(0, len(rows), step))
    return sum(np.bincount(part, minlength=vocab_size) for part in parts)
