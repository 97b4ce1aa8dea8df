"""Any checkpoint as a Hugging Face folder: `lemon export DIR --out HF_DIR`.

Weights, config.json, the tokenizer and a model card; the optimizer's state has no place there.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from pipeline import checkpoints
from pipeline.accounting.lineage import Ancestor, lineage
from pipeline.accounting.recorded_runs import RecordReader
from pipeline.checkpoints import SIDECAR_FILES, CheckpointLayout, manifest, publish
from pipeline.checkpoints.layouts import HUGGING_FACE, huggingface
from pipeline.checkpoints.state import State
from pipeline.data.tokenizers import PIECES, SPECIAL
from pipeline.errors import UserError
from pipeline.export.card import card
from pipeline.records.file_hashes import hashes
from pipeline.records.run_folder import read_json, write_json, write_text
from pipeline.records.versions import installed

logger = logging.getLogger(__name__)

CARD = "README.md"


def export_checkpoint(
    source: Path, out: Path, dtype: str = "float32", source_config: Path | None = None, workers: int = 1
) -> None:
    """Write and publish the folder `out`. Raises UserError, and publishes nothing."""
    checkpoint, layout = checkpoints.locate(source), CheckpointLayout(HUGGING_FACE.name, dtype=dtype)
    state, config = checkpoints.read(checkpoint, source_config)
    origin, ancestors = manifest.Origin.of(checkpoint), lineage(checkpoint, RecordReader())[::-1]
    data = prepared(ancestors)
    with publish.writing(out) as staged:
        files, hashed = checkpoints.write(state, config, staged, layout, workers=workers, read=origin.paths)
        require_same_on_disk(state, staged, dtype)
        copied = _copy(_sidecar_files(checkpoint, data), staged)
        _write_card(staged, out.resolve().name, config, dtype, ancestors, data, copied)
        facts = {"kind": "export", **layout.as_json(), **_provenance(state, checkpoint), "source": origin.facts(hashed)}
        publish.publish(staged, out, facts, files | hashes(staged, [CARD, *copied]))
    for line in state.remarks():
        logger.warning(f"export: {line}")
    others = f", {', '.join(copied)}" if copied else ""
    logger.info(f"export: {len(state.tensors)} tensors in {dtype}{others}, a model card")
    logger.info(f"export: wrote {out}")


def _write_card(
    staged: Path,
    name: str,
    config: PretrainedConfig,
    dtype: str,
    ancestors: list[Ancestor],
    data: Path | None,
    copied: list[str],
) -> None:
    facts = read_json(data / "data.json")["facts"] if data else {}
    has_tokenizer = any("token" in file or "vocab" in file for file in copied)
    write_text(staged / CARD, card(name, config, dtype, ancestors, facts, has_tokenizer))


def _provenance(state: State, checkpoint: Path) -> dict[str, Any]:
    """What the manifest says of how the weights came to be: as the checkpoint has it, exporting costs no FLOPs."""
    return {
        "step": state.step,
        "versions": installed(),
        "provenance": {**state.provenance, "origin": str(checkpoint), "own_flops": 0},
    }


def prepared(ancestors: list[Ancestor]) -> Path | None:
    """The prepared data of the last run that the weights went through."""
    folders = (ancestor.run / "data" for ancestor in reversed(ancestors) if ancestor.run)
    return next((folder for folder in folders if (folder / "data.json").exists()), None)


def require_same_on_disk(state: State, staged: Path, dtype: str) -> None:
    """Read every tensor back from disk and compare it with its source, rounded once, byte by byte. Raises
    UserError."""
    written, stored_dtype = huggingface.read(staged), huggingface.DTYPES[dtype]
    for name, source in state.tensors.items():
        expected, stored = source.tensor().to(stored_dtype), written.tensors[name].tensor()
        if not torch.equal(_bytes(expected), _bytes(stored)):
            raise UserError(
                f"{staged}: '{name}' does not read back as it was written; the disk is faulty, nothing was published"
            )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _sidecar_files(source: Path, data: Path | None) -> list[Path]:
    """The tokenizer of the run's data, else what lies beside a Hugging Face folder's weights."""
    if data and (data / "tokenizer").is_dir():
        return sorted(path for path in (data / "tokenizer").iterdir() if path.is_file())
    layout = checkpoints.detect_layout(source)
    if layout is None or not layout.published_names:
        return []
    return [source / name for name in SIDECAR_FILES if (source / name).exists()]


def _copy(paths: list[Path], staged: Path) -> list[str]:
    """Copy beside the weights. From a sentencepiece model alone AutoTokenizer would build a tokenizer with other ids: a
    tokenizer_config.json has it run sentencepiece itself."""
    paths = [path for path in paths if not (staged / path.name).exists()]
    names = [path.name for path in paths]
    for path in paths:
        shutil.copyfile(path, staged / path.name)
    if names == ["tokenizer.model"]:
        pieces = {f"{name}_token": piece for name, piece in zip(SPECIAL, PIECES, strict=True)}
        write_json(staged / "tokenizer_config.json", {"tokenizer_class": "SentencePieceBackend", **pieces})
        names.append("tokenizer_config.json")
    return names
