"""A run on a text of invented words, whose stages read it in blocks of different lengths."""

from pathlib import Path

import yaml

from tests.helpers.invented_text import some_documents, text_file

BLOCK, LONG = 16, 48
"""Tokens of the data's blocks, and of those of the stages `long` and `whole`."""


def text_run(folder: Path, **top: object) -> Path:
    """The config: `short`, `long` from it, and `whole` from scratch in long blocks. `top` replaces keys of the top
    level."""
    rate = {"peak": 1e-3, "warmup": "1 step", "horizon": "6 steps"}
    train = {"kind": "train", "batch": 8, "evaluate_every": "3 steps", "save_every": "2 steps", "model": "small"}
    train |= {"attention": "sdpa"}
    words = text_file(folder / "words.txt", some_documents(60))
    sizes = {"family": "bert-pre-ln", "layers": 2, "hidden": 24, "heads": 3, "dropout": 0.1}
    content = {
        "name": "blocks",
        "folder": str(folder / "run"),
        "processes": 1,
        "data": {
            "kind": "text",
            "dataset": str(words),
            "block": BLOCK,
            "evaluation_blocks": 20,
            "tokenizer": {"vocab_size": 200},
        },
        "models": {"small": sizes},
        "stages": [
            {**train, "name": "short", "schedule": rate},
            {**train, "name": "long", "start": "short", "data": {"block": LONG, "continue": True}, "schedule": rate},
            {**train, "name": "whole", "data": {"block": LONG}, "schedule": rate},
        ],
        **top,
    }
    path = folder / "blocks.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
