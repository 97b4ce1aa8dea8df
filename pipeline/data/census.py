"""One pass over a corpus: how much text there is, which documents are held out, and what a vocabulary is learned from.

What is remembered is bounded, however long the corpus is: as many of the documents with the lowest fingerprints as the
evaluation set may need, and LEARN_FROM characters, half as many again at most, to learn from.
"""

import hashlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.data.documents import Corpus, fingerprint
from pipeline.data.reading_progress import ReadingProgress
from pipeline.data.tokenizers import LEARN_FROM
from pipeline.errors import UserError

LARGEST_HELD_OUT = 0.1
"""The largest share of the text that is cut off for evaluation."""
KEPT, KEPT_AT_MOST = 2, 12
"""Candidates to be held out, in characters per character asked for: what is kept when there are more than the most. A
text that is as long as the most can give all that is asked for."""
LEARNING_AT_MOST = 1.5
"""Characters to learn from, per character of LEARN_FROM, before those are let go that are too many by now."""
Facts = dict[str, int | str]
"""What a corpus is recognised by, JSON-able."""


class Tally:
    """What a corpus is recognised by: how many documents, characters, and all fingerprints in their order."""

    def __init__(self) -> None:
        self.documents, self.characters, self._digest = 0, 0, hashlib.sha256()

    def add(self, document: str, number: int) -> None:
        """number: the document's fingerprint."""
        self.documents += 1
        self.characters += len(document)
        self._digest.update(number.to_bytes(8, "big"))

    def facts(self) -> Facts:
        """The same of two corpora that have the same documents in the same order."""
        return {"documents": self.documents, "characters": self.characters, "sha256": self._digest.hexdigest()}


class LowestDocuments:
    """The documents of the lowest fingerprints; copies count together."""

    def __init__(self, characters: float):
        """characters: as many as are asked for."""
        self.kept, self.most = KEPT * characters, KEPT_AT_MOST * characters
        self.below: float = float("inf")
        """All documents are known whose fingerprint is smaller."""
        self.texts: dict[int, str] = {}
        self.sizes: dict[int, int] = {}
        self._total = 0

    def add(self, document: str, number: int) -> None:
        if number >= self.below:
            return
        self.texts.setdefault(number, document)
        self.sizes[number] = self.sizes.get(number, 0) + len(document)
        self._total += len(document)
        if self._total > self.most:
            self._let_go()

    def _let_go(self) -> None:
        numbers = sorted(self.sizes)
        ends = np.cumsum([self.sizes[number] for number in numbers])
        count = int(np.searchsorted(ends, self.kept)) + 1
        if count == len(numbers):
            return
        self.below, self._total = numbers[count], int(ends[count - 1])
        self.texts = {number: self.texts[number] for number in numbers[:count]}
        self.sizes = {number: self.sizes[number] for number in numbers[:count]}

    def select(self, characters: int, limit: int) -> list[str] | None:
        """Documents of about `characters` in all and at most `limit`, by fingerprint; None where that takes more
        documents than are known."""
        selected: list[str] = []
        total = 0
        for number in sorted(self.sizes):
            if total >= characters:
                return selected
            if total + self.sizes[number] <= limit:
                text = self.texts[number]
                selected += [text] * (self.sizes[number] // len(text))
                total += self.sizes[number]
        return selected if total >= characters or self.below == float("inf") else None


class LearningText:
    """About LEARN_FROM characters of the documents, selected by their fingerprints, in their order."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._numbers = array("Q")
        self._kept = 0

    def add(self, document: str, number: int, characters: int) -> None:
        """characters: of all documents so far."""
        if not _is_learned_from(number, characters):
            return
        self._texts.append(document)
        self._numbers.append(number)
        self._kept += len(document)
        if self._kept > LEARNING_AT_MOST * LEARN_FROM:
            self._let_go(characters)

    def _let_go(self, characters: int) -> None:
        kept = [n for n, number in enumerate(self._numbers) if _is_learned_from(number, characters)]
        self._texts = [self._texts[n] for n in kept]
        self._numbers = array("Q", (self._numbers[n] for n in kept))
        self._kept = sum(map(len, self._texts))

    def documents(self, characters: int, held_out: set[int]) -> Iterator[str]:
        """Those of a corpus of `characters` but for the fingerprints `held_out`."""
        for text, number in zip(self._texts, self._numbers, strict=True):
            if _is_learned_from(number, characters) and number not in held_out:
                yield text


def _is_learned_from(number: int, characters: int) -> bool:
    """Whether the document of a fingerprint is, in a text of `characters`: by the low bits, for the held-out documents
    are selected by the high ones, and the two selections must be independent. A longer text selects fewer."""
    return (number & 0xFFFFFFFF) < min(1.0, LEARN_FROM / characters) * 2**32


@dataclass(frozen=True)
class Census:
    """What one pass over a corpus has found.

    tally: how much it is. held_out: documents to evaluate on, by fingerprint, so that any beginning of the list is a
    fair sample; equal ones are together. learning: what a vocabulary is learned from, where it was asked for.
    """

    tally: Tally
    held_out: list[str]
    learning: LearningText

    @classmethod
    def of(cls, corpus: Corpus, held_out: int = 0, learn: bool = False) -> "Census":
        """Read `corpus`. held_out: characters to be held out, about, and at most LARGEST_HELD_OUT of all. Documents are
        taken by rank of their fingerprint, whatever their order or place; one that would break the bound is passed
        over. Raises UserError when the corpus contains no text."""
        kept = float(held_out)
        while True:
            tally, lowest, learning = _read(corpus, kept, learn)
            if not tally.documents:
                raise UserError(f"{corpus.name}: no text in it; check data.dataset and data.column")
            selected = lowest.select(held_out, int(LARGEST_HELD_OUT * tally.characters))
            if selected is not None:
                return cls(tally, selected, learning)
            kept *= KEPT_AT_MOST  # documents so long that most were passed over: look again, and keep more

    def learning_text(self) -> Iterator[str]:
        """What a vocabulary is learned from: nothing that is held out."""
        return self.learning.documents(self.tally.characters, {fingerprint(document) for document in self.held_out})


def _read(corpus: Corpus, kept: float, learn: bool) -> tuple[Tally, LowestDocuments, LearningText]:
    tally, lowest, learning = Tally(), LowestDocuments(kept), LearningText()
    progress = ReadingProgress(f"reading {corpus.name}")
    for document in corpus:
        number = fingerprint(document)
        tally.add(document, number)
        if kept:
            lowest.add(document, number)
        if learn:
            learning.add(document, number, tally.characters)
        progress.show(tally.characters)
    return tally, lowest, learning
