"""What the data of a config are, as far as it can be known before they are prepared: nothing is downloaded or written.

What is prepared already has exact facts. Of local files the samples are estimated from sizes; of a hub data set nothing
is known before it is fetched.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from pipeline.config.data import ImageData, TextData, TokenizerChoice
from pipeline.data import augment
from pipeline.data.images import LARGEST_HELD_OUT
from pipeline.data.prepared import Prepared, prepared_before
from pipeline.data.sources import COMPRESSED, TABLE, Embedded, HubSplit, LocalFiles, Source, resolve
from pipeline.data.tokenizers import Pretrained, SentencePiece, table_size
from pipeline.errors import UserError

EMBEDDED = {"text": 2_100_000, "images": 1_797}
"""The quick start's corpora: characters (a few more or less in other versions of Python), images."""
CHARACTERS_PER_TOKEN = 4.0
"""Of English text, about (BERT's vocabulary has 4.3, a small one 3.5)."""
COMPRESSION = 3.5
"""Of text by xz, gzip or zstandard, about."""
NOMINAL = 10**9
"""Samples of data whose size nothing tells."""
VOCABULARY = 30_522
"""Pieces of a tokenizer that is not on this machine: BERT's."""


@dataclass(frozen=True)
class Inventory:
    """`data`: its facts, exact where `prepared`. counted: whether the number of samples is known, if only about. lines:
    for people to read, (what, value)."""

    data: Prepared
    prepared: bool
    counted: bool
    lines: list[tuple[str, str]]


def inventory(data: TextData | ImageData, seed: int, folder: Path) -> Inventory:
    """What is there. Raises UserError for sources that do not exist, and for a folder with other data, as `prepare`
    does."""
    if there := prepared_before(folder, data, seed):
        facts = there.facts
        counts = f"{facts['training']:,} samples, {facts['evaluation']:,} for evaluation"
        return Inventory(there, True, True, [("data", f"prepared in {folder}: {counts}")])
    training, evaluation = resolve(data)
    facts, lines = _text(data, training) if isinstance(data, TextData) else _images(data, training)
    counted = facts["training"] is not None
    facts |= {} if counted else {"training": NOMINAL}
    if evaluation is not None:
        lines.append(("evaluation", f"of its own: {_named(evaluation)}"))
    return Inventory(Prepared(folder, facts), False, counted, [("data", "not prepared yet"), *lines])


def certain(data: TextData | ImageData) -> dict[str, Any] | None:
    """The facts of data that the config and its tokenizer decide, which models must fit; None where these are not known
    before the data are read. Raises UserError for a tokenizer that is none."""
    if not isinstance(data, TextData):
        return None
    size, special, _ = _vocabulary(data.tokenizer)
    return {**_of_blocks(data, size), "special": special} if special else None


def _of_blocks(data: TextData, pieces: int) -> dict[str, Any]:
    sizes = {"vocab_size": table_size(pieces), "pieces": pieces, "block": data.block, "scored": data.scored}
    return {"kind": "text", **sizes, "tokens_per_sample": data.block}


def _text(data: TextData, source: Source) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    size, special, tokenizer = _vocabulary(data.tokenizer)
    characters = _characters(source)
    blocks = None if characters is None else math.ceil(characters / CHARACTERS_PER_TOKEN / (data.block - 2))
    held_out = 0 if data.evaluation else data.evaluation_blocks
    facts = {
        **_of_blocks(data, size),
        "training": None if blocks is None else max(1, blocks - held_out),
        "evaluation": data.evaluation_blocks,
        **({"special": special} if special else {}),
    }
    about = "unknown until it is fetched" if blocks is None else f"about {facts['training']:,} blocks of {data.block}"
    return facts, [("source", f"{_named(source)}: {about}"), ("tokenizer", tokenizer)]


def _characters(source: Source) -> float | None:
    match source:
        case Embedded():
            return EMBEDDED["text"]
        case LocalFiles(paths):
            return sum(path.stat().st_size * _expansion(path.name.lower()) for path in paths)
        case HubSplit():
            return None


def _expansion(name: str) -> float:
    """Characters of a byte of the file."""
    return COMPRESSION if name.endswith((*COMPRESSED, TABLE)) else 1.0


def _vocabulary(choice: TokenizerChoice) -> tuple[int, dict[str, int], str]:
    """(pieces, special ids as far as they are known, what it is). Raises UserError for files that are none."""
    if choice.kind == "sentencepiece" or choice.path is None:
        pieces = f"sentencepiece, {choice.vocab_size:,} pieces learned from the text"
        return choice.vocab_size, SentencePiece.SPECIAL_IDS, pieces
    wordpiece = choice.kind == "wordpiece"
    found = Pretrained.wordpiece(Path(choice.path).expanduser()) if wordpiece else Pretrained.here(choice.path)
    if found is None:
        return VOCABULARY, {}, f"{choice.path}, not on this machine: {VOCABULARY:,} pieces assumed"
    return found.size, found.special, f"{choice.path}, {found.size:,} pieces"


def _images(data: ImageData, source: Source) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    augment.require(data.augment)
    count, classes = _image_count(source)
    held_out = 0 if data.evaluation else min(data.evaluation_images, int(LARGEST_HELD_OUT * (count or NOMINAL)))
    facts = {
        "kind": "images",
        "size": data.size,
        "channels": data.channels,
        "classes": classes,
        "class_names": [str(number) for number in range(classes)],
        "training": None if count is None else count - held_out,
        "evaluation": held_out or data.evaluation_images,
        "tokens_per_sample": 1,
    }
    about = "unknown until it is fetched" if count is None else f"{count:,} images"
    return facts, [("source", f"{_named(source)}: {about}, {classes:,} classes taken for the last layer")]


def _image_count(source: Source) -> tuple[int | None, int]:
    """(images, classes): tables and the hub do not tell classes, a thousand are taken (ImageNet-1k)."""
    match source:
        case Embedded():
            return EMBEDDED["images"], 10
        case LocalFiles(paths) if paths[0].name.lower().endswith(TABLE):
            return sum(_rows(path) for path in paths), 1000
        case LocalFiles(paths):
            return len(paths), len({path.parent for path in paths})
        case HubSplit():
            return None, 1000


def _rows(table: Path) -> int:
    try:
        return int(pyarrow.parquet.read_metadata(table).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{table}: cannot read it ({error}); it is damaged or no parquet file") from error


def _named(source: Source) -> str:
    match source:
        case Embedded():
            return "embedded"
        case LocalFiles(paths):
            return f"{len(paths):,} file{'s' * (len(paths) != 1)}, {paths[0]}" + (" …" if len(paths) > 1 else "")
        case HubSplit(name, subset, split):
            return f"hub data set {name}{f' ({subset})' if subset else ''}, split {split}"
