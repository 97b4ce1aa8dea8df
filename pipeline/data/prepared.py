"""The prepared folder: written once, whole or not at all, and all that training and export read.

`data.json` marks it complete: the facts, the data config that they follow from, and the seed.
"""

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.config.schema import Augmentation, Data, ImageData, TextData
from pipeline.config.validation_errors import explain
from pipeline.data import images, text
from pipeline.errors import UserError
from pipeline.records.run_folder import read_json, write_json

logger = logging.getLogger(__name__)

READ_LATER = {"workers", "augment"}
"""Keys of the data config that change how samples are read, not what is stored."""


@dataclass(frozen=True)
class Prepared:
    """Prepared data.

    `facts`, JSON-able. Both kinds: kind, training, evaluation (samples), tokens_per_sample. Text: vocab_size, block,
    scored, documents, special (ids of pad, unk, cls, sep, mask), unigram_entropy and unigram_cross_entropy
    (nats per token, see text.py). Images: size, channels, classes, class_names, mean, std.
    """

    folder: Path
    facts: dict[str, Any]

    @property
    def size(self) -> int:
        """Training samples per epoch."""
        return int(self.facts["training"])

    @property
    def tokenizer(self) -> Path:
        """Text only: the folder of the tokenizer (see tokenizers.py)."""
        return self.folder / "tokenizer"

    def samples(self, augmentation: Augmentation = "none") -> text.TextSamples | images.ImageSamples:
        """The reader of the samples. Raises UserError when the folder is damaged."""
        if self.facts["kind"] == "text":
            return text.TextSamples(self.folder, self.facts)
        return images.ImageSamples(self.folder, self.facts, augmentation)


def prepare(data: TextData | ImageData, seed: int, folder: Path) -> Prepared:
    """Write `folder` from the config, or return at once what an earlier call with the same config and seed wrote.

    Works in a sibling folder that is renamed at the end: what a killed call leaves is not used, and the next call
    removes it. Raises UserError for bad data, and for a folder that was prepared from another config or contains
    anything else.
    """
    folder = Path(folder)
    if (folder / "data.json").exists():
        _require_same(folder, data, seed)
        logger.debug(f"{folder}: prepared already")
        return open_prepared(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not empty and not prepared data; remove it or choose another folder")
    draft = folder.with_name(folder.name + ".draft")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        facts = text.build(data, seed, draft) if data.kind == "text" else images.build(data, seed, draft)
        write_json(draft / "data.json", {"facts": facts, "data": data.model_dump(mode="json"), "seed": seed})
        os.replace(draft, folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Prepared(folder, facts)


def open_prepared(folder: Path) -> Prepared:
    """What `prepare` wrote. Raises UserError when there is none, or it is damaged."""
    folder = Path(folder)
    if not (folder / "data.json").exists():
        raise UserError(f"{folder}: no prepared data here; prepare them first (lemon prepare CONFIG)")
    prepared = Prepared(folder, _record(folder)["facts"])
    prepared.samples()
    return prepared


def _record(folder: Path) -> dict[str, Any]:
    record = read_json(folder / "data.json")
    if not {"facts", "data", "seed"} <= record.keys():
        raise UserError(f"{folder / 'data.json'}: not what prepare writes; remove the folder and prepare again")
    return record


def _require_same(folder: Path, data: TextData | ImageData, seed: int) -> None:
    record = _record(folder)
    before = _with_defaults(folder, record["data"]) | {"seed": record["seed"]}
    now = data.model_dump(mode="json") | {"seed": seed}
    for key in sorted((before.keys() | now.keys()) - READ_LATER):
        if before.get(key) != now.get(key):
            raise UserError(
                f"{folder}: prepared with {key} {before.get(key)!r}, and the config has {now.get(key)!r}; "
                "remove the folder to prepare again, or give the run another name"
            )


def _with_defaults(folder: Path, recorded: dict[str, Any]) -> dict[str, Any]:
    """The data config that a folder was prepared from; a key that is younger than the folder has its default."""
    try:
        data: TextData | ImageData = TypeAdapter(Data).validate_python(recorded)
        return data.model_dump(mode="json")
    except ValidationError as error:
        raise UserError(
            f"{folder}: prepared with settings that this version does not know: {explain(error, recorded, Data)}; "
            "remove the folder to prepare again"
        ) from error
