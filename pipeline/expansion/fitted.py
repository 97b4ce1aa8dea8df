"""What a fit has left: the coefficients of a learned method, of which source they are, and what they cost."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import checkpoints
from pipeline.checkpoints import manifest
from pipeline.checkpoints.sidecars import weight_files
from pipeline.errors import UserError
from pipeline.growth.method import GrowthModule
from pipeline.records.file_hashes import TITLES, Algorithm, FileRecord, hashed_again, hashes, sha256
from pipeline.records.processes import WORKERS
from pipeline.records.run_folder import read_json

logger = logging.getLogger(__name__)

PREFIX = "coefficients."
"""In the names of a fit's checkpoints: the module's place in the one that is trained."""
FACTS = "fit.json"
"""Beside the coefficients: of which source and growth they are."""


@dataclass(frozen=True)
class Fitted:
    """checkpoint: of the coefficients; None: they stay as the method starts them. facts: what the fit was, with its
    steps, losses, `flops` in all and `training_flops`. source: what it was fitted on; None: any."""

    checkpoint: Path | None
    facts: dict[str, Any]
    source: Path | None = None

    def module(self, begun: GrowthModule) -> GrowthModule:
        """`begun` with the coefficients, in float64, as a plan stores its maps. Raises UserError where they are of
        another growth, or damaged."""
        assert isinstance(begun, nn.Module), "a learned method supplies an nn.Module"
        if self.checkpoint is not None:
            _restore(begun, self.checkpoint)
        return begun.double().requires_grad_(False)

    def require(self, source: Path) -> None:
        """Raises UserError for another source than that of the fit, as far as its manifest tells."""
        if self.checkpoint is not None and (source / manifest.NAME).exists():
            require_same_source(
                self.checkpoint, {"path": str(source), "manifest_sha256": sha256(source / manifest.NAME)}
            )

    def of(self, source: dict[str, Any]) -> dict[str, Any]:
        """The facts for the manifest of what is grown from a source. source: what the manifest says of it. Raises
        UserError where it is not the one that the fit was for."""
        if self.checkpoint is None:
            return self.facts
        require_same_source(self.checkpoint, source)
        return {
            **self.facts,
            "checkpoint": str(self.checkpoint),
            "manifest_sha256": sha256(self.checkpoint / manifest.NAME),
        }


UNFITTED = Fitted(None, {"steps": 0, "flops": 0, "training_flops": 0})


def coefficients_of(module: GrowthModule) -> int:
    """How many a learned method has."""
    assert isinstance(module, nn.Module), "a learned method supplies an nn.Module"
    return sum(parameter.numel() for parameter in module.parameters())


def source_facts(folder: Path, algorithm: Algorithm) -> dict[str, Any]:
    """What the manifest of a result says of its source, every byte hashed; of one without a manifest, of the files that
    are read, by `algorithm`. Raises UserError for damage."""
    origin = manifest.Origin.of(folder)
    if origin.expected is not None:
        records = hashed_again(folder, origin.expected, WORKERS)
    else:
        names, read = manifest.listing(folder), set(weight_files(folder))
        kept = [name for name in names if not read or name in {*read, checkpoints.CONFIG}]
        records = hashes(folder, kept, algorithm, WORKERS)
    return origin.facts({folder / name: record for name, record in records.items()})


def require_same_source(checkpoint: Path, source: dict[str, Any]) -> None:
    """Raises UserError where the coefficients in `checkpoint` are of another source than these facts say, wherever that
    lies."""
    known = read_json(checkpoint / FACTS).get("source") if (checkpoint / FACTS).exists() else None
    if not isinstance(known, dict):
        raise UserError(f"{checkpoint}: does not say what it was fitted to; remove {_fit_of(checkpoint)} to fit anew")
    if not _same_numbers(known, source):
        raise UserError(
            f"{checkpoint}: fitted to {known['path']} as it was then, and now {source['path']} holds other numbers; "
            f"remove {_fit_of(checkpoint)} to fit the growth anew"
        )


def _fit_of(checkpoint: Path) -> Path:
    """The folder of the stage."""
    return checkpoint.parent.parent


def _same_numbers(known: dict[str, Any], source: dict[str, Any]) -> bool:
    """Whether facts say the same of a source's content as `known` does: its manifest, or the files that `known` names.
    Those that were hashed by another algorithm then are hashed by it once more."""
    if "files" not in known:
        return bool(known.get("manifest_sha256") == source.get("manifest_sha256"))
    before = {name: FileRecord.model_validate(file) for name, file in known["files"].items()}
    there = source.get("files") or {}
    if not before.keys() <= there.keys():
        return False
    now = {name: FileRecord.model_validate(there[name]) for name in before}
    otherwise = {name: file for name, file in before.items() if file.algorithm != now[name].algorithm}
    if otherwise:
        titles = " and ".join(sorted({TITLES[file.algorithm] for file in otherwise.values()}))
        logger.info(f"{source['path']}: the fit knows {len(otherwise)} of its files by {titles}; they are hashed again")
    return before == now | hashed_again(Path(source["path"]), otherwise, WORKERS)


def _restore(module: nn.Module, checkpoint: Path) -> None:
    """Give a module the coefficients of a fit's checkpoint, every byte of which is hashed. Raises UserError where names
    or sizes differ, or it is damaged."""
    manifest.verify(checkpoint, WORKERS)
    state = checkpoints.raw(checkpoint)
    held = {name.removeprefix(PREFIX): tensor for name, tensor in state.tensors.items()}
    sought = dict(module.named_parameters())
    if odd := sorted(set(held) ^ set(sought)):
        raise UserError(f"{checkpoint}: its coefficients are of another growth ('{odd[0]}'); fit this one anew")
    for name, parameter in sought.items():
        tensor = held[name].tensor()
        if tensor.numel() != parameter.numel():
            raise UserError(
                f"{checkpoint}: '{name}' has {tensor.numel():,} coefficients, this growth {parameter.numel():,}; "
                "fit it anew"
            )
        with torch.no_grad():
            parameter.copy_(tensor.view_as(parameter))
