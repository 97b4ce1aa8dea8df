"""The prepared folder: written once, whole or not at all, and all that training and export read.

`data.json` marks it complete: the facts, the data config that they follow from, the seed, size and SHA-256 of every
file, and its own hash. Every start of a run holds the folder against them.
"""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.config.data import READ_LATER, Augmentation, Data, ImageData, TextData
from pipeline.config.validation_errors import explain
from pipeline.data import images, text, text_building
from pipeline.data.causal import CausalSamples
from pipeline.errors import UserError
from pipeline.records.file_hashes import files_below, hashes
from pipeline.records.processes import CPUS, WORKERS
from pipeline.records.run_folder import read_json, write_json

logger = logging.getLogger(__name__)

NAME, FORMAT = "data.json", 3
"""Format 1 had no hashes, and no number. Format 2 had no version of masking, and a vocabulary of as many rows as
pieces."""
ANEW = "restore it, or remove the folder to prepare the data again"


@dataclass(frozen=True)
class Prepared:
    """Prepared data.

    `facts`, JSON-able. Both kinds: kind, training, evaluation (samples), tokens_per_sample. Text: pieces (of the
    tokenizer), vocab_size (rows of a fresh model's table, at least as many), block, scored, documents, special (ids of
    cls and sep, and of pad, unk, mask where the tokenizer has them), special_ids (of all special pieces), masking
    (version of its rules, see masking.py), unigram_entropy and unigram_cross_entropy (nats per ordinary token, see
    text_building.py). Images: size, channels, classes, class_names, mean, std. `causal`: whether text is read for a
    model that predicts the next token.
    """

    folder: Path
    facts: dict[str, Any]
    causal: bool = False

    @property
    def size(self) -> int:
        """Training samples per epoch."""
        return int(self.facts["training"])

    @property
    def tokenizer(self) -> Path:
        """Text only: the folder of the tokenizer (see tokenizers.py)."""
        return self.folder / "tokenizer"

    def samples(
        self, augmentation: Augmentation = "none", cross_document: bool = True, evaluation_crop: float = 1.0
    ) -> text.TextSamples | images.ImageSamples:
        """The reader of the samples: of images as they are augmented, or cropped for evaluation, of text with documents
        that attend to each other or not. Raises UserError when the folder is damaged."""
        if self.facts["kind"] == "text":
            return (CausalSamples if self.causal else text.TextSamples)(self.folder, self.facts, cross_document)
        return images.ImageSamples(self.folder, self.facts, augmentation, evaluation_crop)


def prepare(data: TextData | ImageData, seed: int, folder: Path, processes: int = CPUS) -> Prepared:
    """Write `folder` from the config, or return at once what an earlier call with the same config wrote.

    Works in a sibling folder that is renamed at the end: what a killed call leaves is no prepared data; the next call
    goes on with what text has been packed there, if its settings are the same, and removes anything else. Text is
    tokenised by `processes`; the result does not depend on how many they are. Raises UserError for bad data, and for a
    folder that was prepared from another config or contains anything else.
    """
    folder = Path(folder)
    if there := prepared_before(folder, data, seed):
        _require_whole(folder)
        logger.debug(f"{folder}: prepared already")
        _tell_of_former_masks(there)
        text_building.forget(folder)
        return there
    draft = folder.with_name(folder.name + ".draft")
    try:
        facts = _built(data, seed, draft, processes)
        _write_record(draft, {"facts": facts, "data": data.model_dump(mode="json"), "seed": seed})
        os.replace(draft, folder)
    except BaseException:
        if not text_building.can_go_on(draft):
            shutil.rmtree(draft, ignore_errors=True)
        raise
    text_building.forget(folder)
    return Prepared(folder, facts)


def prepared_before(folder: Path, data: TextData | ImageData, seed: int) -> Prepared | None:
    """What an earlier `prepare` with the same config wrote. Raises UserError where anything else is there."""
    if (folder / NAME).exists():
        _require_same(folder, data, seed)
        return open_prepared(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: not empty and not prepared data; remove it or choose another folder")
    return None


def _tell_of_former_masks(prepared: Prepared) -> None:
    if prepared.facts["kind"] == "text" and "masking" not in prepared.facts:
        logger.info(
            f"{prepared.folder}: prepared by an older release, whose masks this run keeps: separators are predicted "
            "too, and the evaluation's masks follow the seed; a run in another folder gets those of this release"
        )


def _built(data: TextData | ImageData, seed: int, draft: Path, processes: int) -> dict[str, Any]:
    if data.kind == "text":
        return text_building.build(data, seed, draft, processes)
    from pipeline.data import image_building  # and `datasets`, which takes a second

    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return image_building.build(data, draft)


def open_prepared(folder: Path) -> Prepared:
    """What `prepare` wrote. Raises UserError when there is none, or it is damaged."""
    folder = Path(folder)
    if not (folder / NAME).exists():
        raise UserError(f"{folder}: no prepared data here; prepare them first (lemon prepare CONFIG)")
    prepared = Prepared(folder, _record(folder)["facts"])
    prepared.samples()
    return prepared


def _write_record(folder: Path, content: dict[str, Any]) -> None:
    names = [name for name in files_below(folder) if not name.startswith(text_building.UNFINISHED)]
    files = {name: file.model_dump() for name, file in hashes(folder, names, text_building.HASH, WORKERS).items()}
    whole = {"format": FORMAT, **content, "files": files}
    write_json(folder / NAME, {**whole, "sha256": _own_hash(whole)})


def _own_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _record(folder: Path) -> dict[str, Any]:
    path, record = folder / NAME, read_json(folder / NAME)
    if not {"facts", "data", "seed"} <= record.keys():
        raise UserError(f"{path}: not what prepare writes; remove the folder and prepare again")
    number = record.get("format", 1)
    if not isinstance(number, int) or number > FORMAT:
        raise UserError(f"{path}: format {number}, this release reads up to {FORMAT}; install a newer one")
    if number > 1 and record.pop("sha256", None) != _own_hash(record):
        raise UserError(f"{path}: does not match its own hash, so it was edited or damaged; {ANEW}")
    return record


def _require_whole(folder: Path) -> None:
    """Raises UserError for the first file that is not what was prepared."""
    files = _record(folder).get("files")
    if files is None:
        logger.warning(f"{folder}: prepared by an older release, nothing says whether its files are whole")
        return
    there = hashes(folder, [name for name in files_below(folder) if name in files], text_building.HASH, WORKERS)
    for name, expected in files.items():
        if name not in there:
            raise UserError(f"{folder / name}: missing; {ANEW}")
        if there[name].model_dump() != expected:
            raise UserError(f"{folder / name}: not what was prepared, its SHA-256 differs; {ANEW}")


def _require_same(folder: Path, data: TextData | ImageData, seed: int) -> None:
    record = _record(folder)
    before = _with_defaults(folder, record["data"]) | {"seed": record["seed"]}
    now = data.model_dump(mode="json") | {"seed": seed}
    seedless = {"seed"} if data.kind == "images" or "masking" in record["facts"] else set()
    for key in sorted((before.keys() | now.keys()) - READ_LATER - seedless):
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
