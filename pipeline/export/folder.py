"""Any checkpoint as a Hugging Face folder: `lemon export DIR --out HF_DIR`.

Weights, config.json, the tokenizer and a model card; the optimizer's state has no place there.
"""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.accounting.device_time import PowerFactors
from pipeline.accounting.lineage import Ancestor, lineage
from pipeline.accounting.recorded_runs import RecordReader
from pipeline.checkpoints import CheckpointLayout, Sidecars, loader, manifest, publish, tying
from pipeline.checkpoints.layouts import HUGGING_FACE
from pipeline.checkpoints.sidecars import SOURCE_README
from pipeline.checkpoints.state import State
from pipeline.data.tokenizers import PIECES, SPECIAL
from pipeline.export.base_model import require_id
from pipeline.export.card import Origins, card
from pipeline.export.footprint import Footprint
from pipeline.records.file_hashes import FASTEST, Algorithm, hashes
from pipeline.records.run_folder import read_json, write_json, write_text
from pipeline.records.versions import installed

logger = logging.getLogger(__name__)

CARD = "README.md"


@dataclass(frozen=True)
class Stated:
    """What a user says for the card. base_model: the id on the hub of the model that the lineage begins with; factors:
    of energy and emissions."""

    base_model: str | None = None
    factors: PowerFactors | None = None


def export_checkpoint(
    source: Path,
    out: Path,
    dtype: str = "float32",
    source_config: Path | None = None,
    workers: int = 1,
    algorithm: Algorithm = FASTEST,
    stated: Stated = Stated(),
) -> None:
    """Write and publish the folder `out`, sealed by `algorithm`. Raises UserError, and publishes nothing."""
    if stated.base_model:
        require_id(stated.base_model)
    checkpoint, layout = checkpoints.locate(source), CheckpointLayout(HUGGING_FACE.name, dtype=dtype)
    state, config = checkpoints.read(checkpoint, source_config)
    state = tying.agreeing(state, models.architecture_of(config), models.misread(config))
    origin, reader = manifest.Origin.of(checkpoint), RecordReader()
    ancestors = lineage(checkpoint, reader)[::-1]
    origins = Origins(ancestors, Footprint.of(ancestors, reader, stated.factors), base_model=stated.base_model)
    data = prepared(ancestors)
    with publish.writing(out) as staged:
        files, hashed = checkpoints.write(
            state, config, staged, layout, workers=workers, read=origin.files(algorithm), algorithm=algorithm
        )
        loader.require_same(staged, state)
        copied, beside = _copy_tokenizer(data, staged), Sidecars.of(checkpoint)
        copied += beside.copy(staged, algorithm, renamed={CARD: SOURCE_README})
        _write_card(staged, out.resolve().name, config, dtype, origins, data, copied)
        facts = {"kind": "export", **layout.as_json(), **_provenance(state, checkpoint), "source": origin.facts(hashed)}
        facts["left_behind"] = [*state.all_left_behind(), *beside.left]
        publish.publish(staged, out, facts, files | hashes(staged, [CARD, *copied], algorithm))
    for line in [*state.remarks(), *state.besides()]:
        logger.warning(f"export: {line}")
    others = f", {', '.join(copied)}" if copied else ""
    logger.info(f"export: {len(state.tensors)} tensors in {dtype}{others}, a model card")
    logger.info(f"export: wrote {out}")


def _write_card(
    staged: Path,
    name: str,
    config: PretrainedConfig,
    dtype: str,
    origins: Origins,
    data: Path | None,
    copied: list[str],
) -> None:
    facts = read_json(data / "data.json")["facts"] if data else {}
    has_tokenizer = any("token" in file or "vocab" in file for file in copied)
    before = (staged / SOURCE_README).read_text(encoding="utf-8", errors="replace") if SOURCE_README in copied else None
    write_text(staged / CARD, card(name, config, dtype, replace(origins, source=before), facts, has_tokenizer))


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


def _copy_tokenizer(data: Path | None, staged: Path) -> list[str]:
    """Copy the tokenizer of a run's data. From a sentencepiece model alone AutoTokenizer would build a tokenizer with
    other ids: a tokenizer_config.json has it run sentencepiece itself."""
    place = data / "tokenizer" if data else None
    paths = sorted(path for path in place.iterdir() if path.is_file()) if place and place.is_dir() else []
    names = [path.name for path in paths]
    for path in paths:
        shutil.copyfile(path, staged / path.name)
    if names == ["tokenizer.model"]:
        pieces = {f"{name}_token": piece for name, piece in zip(SPECIAL, PIECES, strict=True)}
        write_json(staged / "tokenizer_config.json", {"tokenizer_class": "SentencePieceBackend", **pieces})
        names.append("tokenizer_config.json")
    return names
