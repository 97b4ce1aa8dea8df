"""Files beside the weights of a Hugging Face folder that say how the model is used."""

import shutil
from pathlib import Path

from pipeline.records.file_hashes import FileRecord, hashes

SIDECAR_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
    "preprocessor_config.json",
    "generation_config.json",
)
"""They go along as they are."""


def copy_sidecars(source: Path, folder: Path, *more: str) -> dict[str, FileRecord]:
    """Copy what lies beside the weights of `source`, and `more`, into the staged `folder`. Returns the records by
    name."""
    names = [name for name in (*SIDECAR_FILES, *more) if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return hashes(folder, names)
