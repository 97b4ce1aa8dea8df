"""Tokenizers: one learned from the training text, a WordPiece vocabulary, or one of transformers'.

Each is saved in the prepared folder, so that a resume or an export needs nothing else:
`tokenizer.model` (sentencepiece) or the files of `save_pretrained`.
"""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, cast

import sentencepiece

from pipeline.config.data import TokenizerChoice
from pipeline.data.sources import is_local
from pipeline.errors import UserError, one_line

if TYPE_CHECKING:  # importing transformers takes seconds
    from transformers import PreTrainedTokenizerBase

SPECIAL = ("pad", "unk", "cls", "sep", "mask")
PIECES = tuple(f"[{name.upper()}]" for name in SPECIAL)
LEARN_FROM = 50_000_000
"""Characters of training text that a vocabulary is learned from, at most: more changes few pieces."""

LONGEST_LINE = 1000
"""Characters of text in one line for sentencepiece, which skips lines above 4,192 bytes."""

TABLE_ROWS = 64
"""A fresh model's table of pieces has a multiple of so many rows: matrix products of odd sizes run slower, on GPUs by
far."""


class Tokenizer(Protocol):
    """What packing and masking need. size: of the vocabulary; special: the ids of cls and sep, which begin a block and
    separate documents, and of pad, unk and mask where there are such; special_ids: these and those of all other pieces
    that are no part of a text, ascending."""

    size: int
    special: dict[str, int]
    special_ids: list[int]

    def encode(self, documents: list[str]) -> list[list[int]]:
        """Ids of each document, without special pieces around them; text such as `[MASK]` is plain text."""

    def save(self, folder: Path) -> None:
        """Write what `load` reads into `folder`, which must not exist."""


class SentencePiece:
    """Byte-pair pieces learned by sentencepiece; the special pieces have the ids 0 to 4."""

    SPECIAL_IDS: ClassVar = {name: number for number, name in enumerate(SPECIAL)}

    def __init__(self, model: bytes):
        self.model = model
        self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.size = self.processor.get_piece_size()
        self.special = {name: self.processor.piece_to_id(piece) for name, piece in zip(SPECIAL, PIECES, strict=True)}
        self.special_ids = sorted(self.special.values())

    @classmethod
    def learn(cls, lines: Iterator[str], vocab_size: int) -> "SentencePiece":
        """Learn `vocab_size` pieces, in one thread, so that the same text gives the same pieces. Raises UserError."""
        model = io.BytesIO()
        pad, unk, start, end, mask = PIECES
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                num_threads=1,
                pad_id=0,
                unk_id=1,
                bos_id=2,
                eos_id=3,
                pad_piece=pad,
                unk_piece=unk,
                bos_piece=start,
                eos_piece=end,
                control_symbols=[mask],
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"data.tokenizer.vocab_size {vocab_size} does not fit the text ({one_line(error)}); "
                "change it or give more text"
            ) from error
        return cls(model.getvalue())

    def encode(self, documents: list[str]) -> list[list[int]]:
        try:
            return cast(list[list[int]], self.processor.encode(documents, num_threads=1))
        except (RuntimeError, OSError) as error:
            longest = max(documents, key=len)
            raise UserError(
                f"sentencepiece cannot cut a text of {len(longest):,} characters that begins with {longest[:20]!r} "
                f"({one_line(error)}); cut it into documents"
            ) from error

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "tokenizer.model").write_bytes(self.model)


class Pretrained:
    """A tokenizer of transformers'."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", origin: str):
        # Packing has a process for each CPU: threads would be in their way, and a fork behind threads is warned of.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        self.special = _special(tokenizer)
        if "sep" not in self.special:
            raise UserError(
                f"{origin}: no sep and no eos token in this tokenizer, and documents are separated by one; add it to "
                "the tokenizer"
            )
        added = (number for number, piece in tokenizer.added_tokens_decoder.items() if piece.special)
        self.special_ids = sorted({*tokenizer.all_special_ids, *added})

    @classmethod
    def wordpiece(cls, path: Path) -> "Pretrained":
        """BERT's WordPiece from a vocab.txt, lower-cased, accents stripped. Raises UserError."""
        try:
            vocabulary = set(path.read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{path}: cannot read the vocabulary ({one_line(error)}); check data.tokenizer.path"
            ) from error
        missing = [piece for piece in PIECES if piece not in vocabulary]
        if missing:
            raise UserError(f"{path}: no {', '.join(missing)} in it; a BERT vocab.txt has one piece a line, with these")
        if not vocabulary - {*PIECES, ""}:
            raise UserError(
                f"{path}: no piece besides {', '.join(PIECES)} in it: every word would be [UNK]; add pieces"
            )
        from transformers import BertTokenizer

        return cls(BertTokenizer(vocab=str(path), do_lower_case=True, strip_accents=True), str(path))

    @classmethod
    def here(cls, name: str) -> "Pretrained | None":
        """The same without a network: of the hub's tokenizers those that were fetched before. Raises UserError for a
        local one that is none."""
        if is_local(name):
            return cls.named(name)
        from transformers import AutoTokenizer

        try:
            found = AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=True)
        except Exception:  # transformers raises whatever it stumbles over where a file is missing
            return None
        return cls(found, name)

    @classmethod
    def named(cls, name: str) -> "Pretrained":
        """A tokenizer folder, or a name on the hub. Raises UserError."""
        from transformers import AutoTokenizer

        if is_local(name) and not Path(name).expanduser().is_dir():
            raise UserError(f"{name}: no such tokenizer folder; check data.tokenizer.path")
        try:
            return cls(AutoTokenizer.from_pretrained(os.path.expanduser(name), trust_remote_code=False), name)
        except UserError:
            raise
        except Exception as error:  # transformers and tokenizers raise whatever their parsers stumble over
            raise UserError(f"{name}: no tokenizer could be loaded from it ({one_line(error)})") from error

    def encode(self, documents: list[str]) -> list[list[int]]:
        encoding = self.tokenizer(
            documents,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return cast(list[list[int]], encoding["input_ids"])

    def save(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)


def table_size(pieces: int) -> int:
    """Rows of a fresh model's table for so many pieces."""
    return -(-pieces // TABLE_ROWS) * TABLE_ROWS


def _special(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """The ids of the special tokens that there are. A causal model's tokenizer has for sep a token that ends a text,
    and for cls one that begins it, or else the same."""
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in (*SPECIAL, "bos", "eos")}
    begin, end = ids.pop("bos"), ids.pop("eos")
    ids["sep"] = end if ids["sep"] is None else ids["sep"]
    ids["cls"] = next((number for number in (ids["cls"], begin, ids["sep"]) if number is not None), None)
    return {name: number for name, number in ids.items() if number is not None}


def create(config: TokenizerChoice, texts: Iterable[str], folder: Path) -> Tokenizer:
    """The tokenizer that `config` names, as it is saved in `folder`; `texts` is what a vocabulary is learned from."""
    _create(config, texts).save(folder)
    return load(folder)


def _create(config: TokenizerChoice, texts: Iterable[str]) -> Tokenizer:
    if config.kind == "sentencepiece" or config.path is None:  # the schema demands a path of the other kinds
        return SentencePiece.learn(_lines(texts), config.vocab_size)
    if config.kind == "wordpiece":
        return Pretrained.wordpiece(Path(config.path).expanduser())
    return Pretrained.named(config.path)


def load(folder: Path) -> Tokenizer:
    """The tokenizer that was saved in `folder`."""
    model = folder / "tokenizer.model"
    return SentencePiece(model.read_bytes()) if model.exists() else Pretrained.named(str(folder))


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        for line in text.splitlines():
            for start in range(0, len(line), LONGEST_LINE):
                yield line[start : start + LONGEST_LINE]
