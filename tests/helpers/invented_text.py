"""Texts of invented words, for the tests of the data."""

import itertools
import random
from pathlib import Path

from pipeline.config.data import TextData

SYLLABLES = ["ka", "lo", "mi", "ren", "tus", "va", "sol", "ne", "pir", "dra"]


def some_documents(count: int = 300, seed: int = 0) -> list[str]:
    """Documents of 20 to 120 invented words, in lines of ten."""
    draw = random.Random(seed)
    words = ["".join(pair) for pair in itertools.product(SYLLABLES, repeat=2)]
    made = []
    for _ in range(count):
        text = draw.choices(words, k=draw.randint(20, 120))
        made.append("\n".join(" ".join(text[start : start + 10]) for start in range(0, len(text), 10)))
    return made


def text_file(path: Path, documents: list[str]) -> Path:
    path.write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    return path


def config(dataset: object, **changes) -> TextData:
    sizes = {"block": 32, "evaluation_blocks": 8, "tokenizer": {"vocab_size": 200}}
    return TextData(kind="text", dataset=dataset if isinstance(dataset, list) else str(dataset), **{**sizes, **changes})
