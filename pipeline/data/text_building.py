"""Text: sources -> a prepared folder: count, hold out, learn the tokenizer, pack.

What is needed to go on after a kill lies in a folder of its own, `unfinished/`, as long as the data are prepared:

    settings.json    the config and versions that it began with; under others everything starts over
    census.json      what was found before the training text is packed (`Survey`)
    parts.jsonl      which parts of it are packed: see packing.py
"""

import logging
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from pipeline.config.data import READ_LATER, TextData
from pipeline.data import tokenizers
from pipeline.data.census import Census, Facts
from pipeline.data.documents import Corpus, corpora, fingerprint
from pipeline.data.masking import IGNORED, VERSION
from pipeline.data.packing import IdFile, Reading, TextChangedError, id_type, pack, pack_first
from pipeline.data.text import TextSamples
from pipeline.errors import UserError
from pipeline.records.file_hashes import Algorithm, FileRecord, files_below, hashes, record
from pipeline.records.run_folder import read_json, write_json
from pipeline.records.strict import Strict

logger = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 12
"""More than tokenizers reach, so that the held-out text fills its evaluation blocks before its tokens are counted."""

TOKENS_AT_ONCE = 1 << 22
UNFINISHED = "unfinished"
FORMAT = 1
"""Of what is kept there."""
HASH: Algorithm = "sha256"
"""By which prepared data are sealed: what earlier releases prepared and began goes on."""
LIBRARIES = ("sentencepiece", "tokenizers", "transformers")
"""Whose other version may cut a text otherwise."""


class Survey(Strict):
    """What is found before the training text is packed. text: how it is recognised; excluded: fingerprints of the
    documents that are held out; blocks: of the evaluation set, and its file; tokenizer: the files of its folder."""

    text: Facts
    excluded: list[int]
    blocks: int
    evaluation: FileRecord
    tokenizer: dict[str, FileRecord]

    @property
    def digest(self) -> str:
        """What stands for the tokenizer."""
        return " ".join(f"{name} {file.digest}" for name, file in sorted(self.tokenizer.items()))


def build(data: TextData, seed: int, folder: Path, processes: int) -> dict[str, Any]:
    """Write the tokenizer and both streams into `folder`, or go on with what an earlier call left there; returns the
    facts. Raises UserError."""
    training, evaluation = corpora(data)
    survey = _begun(data, seed, folder)
    if survey is not None and _same_evaluation(data, evaluation, survey, folder):
        try:
            return _packed(data, seed, folder, training, survey, processes)
        except TextChangedError:
            logger.warning(f"{folder}: {training.name} is not the text any more that this began with, starting over")
    _start_over(data, seed, folder)
    survey = _survey(data, training, evaluation, folder)
    write_json(folder / UNFINISHED / "census.json", survey.model_dump(mode="json"))
    try:
        return _packed(data, seed, folder, training, survey, processes)
    except TextChangedError as error:
        raise UserError(f"{training.name}: changed while it was read; leave it as it is and prepare again") from error


def can_go_on(folder: Path) -> bool:
    """Whether the next `build` finds anything to go on with."""
    return (folder / UNFINISHED / "census.json").exists()


def forget(folder: Path) -> None:
    """Remove what only a call that goes on needs."""
    shutil.rmtree(folder / UNFINISHED, ignore_errors=True)


def _settings(data: TextData, seed: int) -> dict[str, Any]:
    versions = {name: version(name) for name in LIBRARIES}
    return {
        "format": FORMAT,
        "data": data.model_dump(mode="json", exclude={"workers"}),
        "seed": seed,
        "tokenizer": _tokenizer_source(data),
        **versions,
    }


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """What of the settings decides what is stored."""
    data = {key: value for key, value in settings["data"].items() if key not in READ_LATER}
    return {**settings, "data": data, "seed": None}


def _tokenizer_source(data: TextData) -> dict[str, Any]:
    """The local files that the config's tokenizer is read from."""
    path = Path(data.tokenizer.path or "").expanduser()
    if data.tokenizer.path is None or not path.exists():
        return {}
    folder, names = (path, files_below(path)) if path.is_dir() else (path.parent, [path.name])
    return {name: file.model_dump() for name, file in hashes(folder, names, HASH).items()}


def _start_over(data: TextData, seed: int, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / UNFINISHED).mkdir(parents=True)
    write_json(folder / UNFINISHED / "settings.json", _settings(data, seed))


def _begun(data: TextData, seed: int, folder: Path) -> Survey | None:
    """What an earlier call with the same settings has found, if its tokenizer and evaluation set are still there."""
    place = folder / UNFINISHED
    try:
        if _deciding(read_json(place / "settings.json")) != _deciding(_settings(data, seed)):
            return None
        survey = Survey.model_validate(read_json(place / "census.json"))
        evaluation = record(folder / "evaluation.bin", HASH)
        whole = _tokenizer_files(folder) == survey.tokenizer and evaluation == survey.evaluation
    except (UserError, OSError, ValidationError, LookupError, TypeError):
        return None
    return survey if whole else None


def _same_evaluation(data: TextData, evaluation: Corpus | None, survey: Survey, folder: Path) -> bool:
    """Whether evaluation text of its own is what it was. (Held-out text is known by the training text.)"""
    if evaluation is None:
        return True
    path = folder / "evaluation.bin"
    pack_first(evaluation, tokenizers.load(folder / "tokenizer"), data.block - 2, path, most=data.evaluation_blocks)
    return record(path, HASH) == survey.evaluation


def _tokenizer_files(folder: Path) -> dict[str, FileRecord]:
    return hashes(folder / "tokenizer", files_below(folder / "tokenizer"), HASH)


def _survey(data: TextData, training: Corpus, evaluation: Corpus | None, folder: Path) -> Survey:
    """Count the text, hold documents out, learn the tokenizer and pack the evaluation set."""
    asked = 0 if evaluation else CHARACTERS_PER_TOKEN * data.evaluation_blocks * data.block
    census = Census.of(training, asked, learn=data.tokenizer.kind == "sentencepiece")
    text = census.tally
    logger.info(f"text: {text.documents:,} documents, {text.characters:,} characters in {training.name}")
    tokenizer = tokenizers.create(data.tokenizer, census.learning_text(), folder / "tokenizer")
    logger.info(f"tokenizer: {data.tokenizer.kind}, {tokenizer.size:,} pieces")
    used: list[str] = []
    if evaluation is None:
        used = _first(census.held_out, tokenizer, data.evaluation_blocks * (data.block - 2))
        evaluation = Corpus(f"{training.name}, held out", lambda: used)
    path = folder / "evaluation.bin"
    blocks = pack_first(evaluation, tokenizer, data.block - 2, path, most=data.evaluation_blocks)
    _require_blocks(blocks, data.evaluation_blocks, data, evaluation.name)
    excluded = sorted({fingerprint(document) for document in used})
    return Survey(
        text=text.facts(),
        excluded=excluded,
        blocks=blocks,
        evaluation=record(path, HASH),
        tokenizer=_tokenizer_files(folder),
    )


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


def _packed(
    data: TextData, seed: int, folder: Path, training: Corpus, survey: Survey, processes: int
) -> dict[str, Any]:
    """Pack the training text, all but what is missing of it; returns the facts."""
    tokenizer = tokenizers.load(folder / "tokenizer")
    reading = Reading(training, set(survey.excluded), survey.digest)
    ids, journal = folder / "training.bin", folder / UNFINISHED / "parts.jsonl"
    with IdFile(ids, journal, id_type(tokenizer.size), tokenizer.special["sep"]) as file:
        blocks = pack(reading, tokenizer, data.block - 2, file, survey.text, processes)
    if not blocks:
        forget(folder)
    _require_blocks(blocks, 1, data, training.name)
    logger.info(f"packed: {blocks:,} training blocks of {data.block} tokens, {survey.blocks:,} evaluation blocks")
    facts = {
        "kind": "text",
        "vocab_size": tokenizers.table_size(tokenizer.size),
        "pieces": tokenizer.size,
        "block": data.block,
        "scored": data.scored,
        "tokens_per_sample": data.block,
        "training": blocks,
        "evaluation": survey.blocks,
        "documents": survey.text["documents"],
        "special": tokenizer.special,
        "special_ids": tokenizer.special_ids,
        "masking": VERSION,
    }
    return facts | _context_free(TextSamples(folder, facts), seed)


def _context_free(samples: TextSamples, seed: int) -> dict[str, float]:
    """What a predictor without context reaches on the evaluation set, nats per predicted token.

    `unigram_entropy`: the entropy of the distribution of the evaluation rows' ordinary pieces, the bound of all such
    predictors on these rows. `unigram_cross_entropy`: the training rows' distribution of them (add-one smoothed) on the
    evaluation labels, or where nothing can be masked on all of them. Raises UserError where no piece is an ordinary
    one.
    """
    pieces, ordinary = samples.facts["pieces"], samples.masking.ordinary
    counts = {split: _counts(rows, pieces)[ordinary] for split, rows in samples.rows.items()}
    for split, found in counts.items():
        _require_known(int(found.sum()), split)
    share = counts["evaluation"][counts["evaluation"] > 0] / counts["evaluation"].sum()
    smoothed, log_share = counts["training"] + 1.0, np.full(pieces, -np.inf)
    log_share[ordinary] = np.log(smoothed / smoothed.sum())
    scores = log_share[_predicted(samples, seed)]
    return {
        "unigram_entropy": float(-(share * np.log(share)).sum()),
        "unigram_cross_entropy": float(-scores[np.isfinite(scores)].mean()),
    }


def _predicted(samples: TextSamples, seed: int) -> np.ndarray:
    """The evaluation labels of a masked model; where the tokenizer cannot mask, the rows."""
    if "mask" not in samples.facts["special"]:
        return samples.rows["evaluation"]
    labels = samples.evaluate(seed, np.arange(samples.facts["evaluation"]))[1].numpy()
    counted: np.ndarray = labels[labels != IGNORED]
    return counted


def _require_known(tokens: int, split: str) -> None:
    if not tokens:
        raise UserError(
            f"data.tokenizer: it knows no word of the {split} text, every token is [UNK]; choose one that fits the text"
        )


def _counts(rows: np.ndarray, pieces: int) -> np.ndarray:
    """(pieces,): how often each id occurs, TOKENS_AT_ONCE at a time."""
    counts, step = np.zeros(pieces, dtype=np.int64), max(1, TOKENS_AT_ONCE // rows.shape[1])
    for start in range(0, len(rows), step):
        counts += np.bincount(rows[start : start + step].ravel(), minlength=pieces)
    return counts
