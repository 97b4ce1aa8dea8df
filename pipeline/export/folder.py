"""Any checkpoint as a Hugging Face folder: `lemon export DIR --out HF_DIR`.

Weights, config.json, the tokenizer and a model card; the optimizer's state has no place there.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from pipeline import checkpoints
from pipeline.accounting.lineage import Ancestor, lineage
from pipeline.accounting.recorded_runs import RecordReader
from pipeline.checkpoints import SIDECAR_FILES, CheckpointLayout, manifest, publish
from pipeline.checkpoints.layouts import HUGGING_FACE, huggingface
from pipeline.checkpoints.state import State
from pipeline.data.tokenizers import PIECES, SPECIAL
from pipeline.errors import UserError
from pipeline.export.card import card
from pipeline.records.run_folder import read_json, write_json, write_text
from pipeline.records.versions import installed

Say = Callable[[str], None]
CARD = "README.md"


def export_checkpoint(
    source: Path,
    out: Path,
    dtype: str = "float32",
    source_config: Path | None = None,
    workers: int = 1,
    say: Say = print,
) -> None:
    """Write and publish the folder `out`. Raises UserError, and publishes nothing."""
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out or remove it")
    found, layout = checkpoints.locate(source), CheckpointLayout(HUGGING_FACE.name, dtype=dtype)
    state, config = checkpoints.read(found, source_config)
    origin, ancestors = manifest.Origin.of(found), lineage(found, RecordReader())[::-1]
    data = prepared(ancestors)
    with publish.writing(out) as staged:
        files, hashed = checkpoints.write(
            state, config, staged, layout, workers=workers, progress=True, read=origin.paths
        )
        require_same_on_disk(state, staged, dtype)
        beside = _copy(_beside(found, data), staged)
        facts = read_json(data / "data.json")["facts"] if data else {}
        write_text(
            staged / CARD,
            card(
                out.resolve().name,
                config,
                dtype,
                ancestors,
                facts,
                any("token" in name or "vocab" in name for name in beside),
            ),
        )
        publish.publish(
            staged,
            out,
            {
                "kind": "export",
                **layout.as_json(),
                "step": state.step,
                "versions": installed(),
                "source": origin.facts(hashed),
                "provenance": {**state.provenance, "origin": str(found), "own_flops": 0},
            },
            files | manifest.hashes(staged, [CARD, *beside]),
        )
    say(f"export: {len(state.tensors)} tensors in {dtype}{', ' + ', '.join(beside) if beside else ''}, a model card")


def prepared(ancestors: list[Ancestor]) -> Path | None:
    """The prepared data of the last run that the weights went through."""
    folders = (ancestor.run / "data" for ancestor in reversed(ancestors) if ancestor.run)
    return next((folder for folder in folders if (folder / "data.json").exists()), None)


def require_same_on_disk(state: State, staged: Path, dtype: str) -> None:
    """What counts is what lies on disk: every tensor is read back and held against its source, rounded once. Raises
    UserError."""
    written, stored = huggingface.read(staged), huggingface.DTYPES[dtype]
    for name, entry in state.tensors.items():
        pair = [
            tensor.contiguous().reshape(-1).view(torch.uint8)
            for tensor in (entry.tensor().to(stored), written.tensors[name].tensor())
        ]
        if not torch.equal(*pair):
            raise UserError(
                f"{staged}: '{name}' does not read back as it was written; the disk is faulty, nothing was published"
            )


def _beside(source: Path, data: Path | None) -> list[Path]:
    """The tokenizer of the run's data, else what lies beside a Hugging Face folder's weights."""
    if data and (data / "tokenizer").is_dir():
        return sorted(path for path in (data / "tokenizer").iterdir() if path.is_file())
    layout = checkpoints.detect_layout(source)
    if layout is None or not layout.published_names:
        return []
    return [source / name for name in SIDECAR_FILES if (source / name).exists()]


def _copy(paths: list[Path], staged: Path) -> list[str]:
    """Copy beside the weights. A sentencepiece model alone would be guessed at by AutoTokenizer, and given other ids: it is
    told to run sentencepiece itself."""
    paths = [path for path in paths if not (staged / path.name).exists()]
    names = [path.name for path in paths]
    for path in paths:
        shutil.copyfile(path, staged / path.name)
    if names == ["tokenizer.model"]:
        pieces = {f"{name}_token": piece for name, piece in zip(SPECIAL, PIECES, strict=True)}
        write_json(staged / "tokenizer_config.json", {"tokenizer_class": "SentencePieceBackend", **pieces})
        names.append("tokenizer_config.json")
    return names
