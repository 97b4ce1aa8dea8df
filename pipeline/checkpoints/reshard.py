"""Another layout, stage or world size for a checkpoint: weights, optimizer state, steps and hyper-parameters go along.

Nothing is computed. A model need not be known: DeepSpeed's files say their own names and shapes; only Hugging Face
files, on either side, need the model's config.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout, manifest, narrowing, parts, publish, tying
from pipeline.checkpoints.layouts import Layout, require_layout
from pipeline.checkpoints.parts_job import Job, Part
from pipeline.checkpoints.publish import Completed
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.checkpoints.serialization.byte_stream import OutputFile
from pipeline.checkpoints.serialization.writer_pool import write_files
from pipeline.checkpoints.state import State
from pipeline.errors import UserError
from pipeline.optim.optimizers import AdamW
from pipeline.records.file_hashes import FASTEST, Algorithm, FileRecord
from pipeline.records.versions import installed

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReshardPlan:
    """A rewriting that has been checked and not yet done. state: in the names that the result has. config: where files
    with published names are on either side."""

    source: Path
    state: State
    layout: CheckpointLayout
    config: PretrainedConfig | None


def plan_reshard(source: Path, layout: CheckpointLayout, source_config: Path | None = None) -> ReshardPlan:
    """Check that the source has what the layout needs. Raises UserError."""
    folder = checkpoints.locate(source)
    if layout.kind.published_names or require_layout(folder).published_names:
        state, config = checkpoints.read(folder, source_config)
        state = _named(state, config, layout.kind)
    else:
        raw = checkpoints.raw(folder)
        state, config = narrowing.said(folder, raw, kept=raw.frozen), None
    if not layout.kind.holds_optimizer:
        return ReshardPlan(folder, state.without_optimizer(), layout, config)
    _require_groups(folder, state)
    return ReshardPlan(folder, state, layout, config)


def _named(state: State, config: PretrainedConfig, layout: Layout) -> State:
    """The layout's names, and fresh groups where the source has no optimizer and the layout has."""
    from pipeline import models

    if layout.holds_optimizer and not state.groups:
        state = replace(state, groups=checkpoints.fresh_groups(config, AdamW()))
    if layout.published_names:
        return tying.agreeing(state, models.architecture_of(config), models.misread(config))
    return state.renamed(models.architecture_of(config).module_names)


def _require_groups(source: Path, state: State) -> None:
    """Flat files hold what the groups hold: every parameter that is not frozen must be in one."""
    grouped = {name for group in state.groups for name in group.names}
    if ungrouped := [name for name in state.tensors if name not in grouped and name not in state.frozen]:
        raise UserError(
            f"{source}: {len(ungrouped)} parameters are in no optimizer group, such as '{ungrouped[0]}'; "
            "its files do not say whose they are"
        )


def remarks(plan: ReshardPlan) -> list[str]:
    """What the result will not keep, or what its reader must know."""
    return plan.state.remarks() + plan.layout.kind.remarks(plan.state)


@dataclass(frozen=True)
class ReshardResult:
    """A checkpoint that was written in another layout. size: in bytes."""

    path: Path
    layout: CheckpointLayout
    tensors: int
    files: int
    size: int

    def __repr__(self) -> str:
        content = f"{self.tensors} tensors, {amount(self.size)} in {self.files} files"
        return f"ReshardResult('{self.path}': {self.layout.words}, {content})"


def execute_reshard(plan: ReshardPlan, out: Path, workers: int = 1, algorithm: Algorithm = FASTEST) -> ReshardResult:
    """Write and publish the checkpoint `out`, sealed by `algorithm`, and say so. Raises UserError, and publishes
    nothing."""
    return _said(write_reshard(plan, out, workers, algorithm))


def _said(result: ReshardResult) -> ReshardResult:
    logger.info(f"reshard: {result.tensors} tensors, {amount(result.size)} in {result.files} files")
    logger.info(f"reshard: wrote {result.path}{result.layout.how_to_load(result.path)}")
    return result


def write_reshard(plan: ReshardPlan, out: Path, workers: int, algorithm: Algorithm) -> ReshardResult:
    """The same; said is only what is not kept."""
    for line in remarks(plan):
        logger.warning(f"reshard: {line}")
    logger.debug(f"reshard: {plan.source} -> {out}, {plan.layout.words}")
    origin = manifest.Origin.of(plan.source)
    with publish.writing(out) as staged:
        written, hashed = write_files(_files(plan, staged), staged, workers, origin.files(algorithm), algorithm)
        completed = _completed(plan, algorithm, staged, origin.facts(hashed))
        publish.publish(staged, out, completed.facts, written | completed.beside)
    return _result(plan, out, written, completed)


def reshard_part(plan: ReshardPlan, out: Path, part: Part, workers: int, algorithm: Algorithm) -> ReshardResult | None:
    """Write a part of the files of `out`; whoever ends last publishes it and says so, the others return None. Raises
    UserError."""
    job = Job(
        name="reshard",
        known=_known(plan),
        more={},
        config=checkpoints.config_bytes(plan.config, plan.layout) if plan.config else None,
        origin=manifest.Origin.of(plan.source),
        algorithm=algorithm,
        files=partial(_files, plan),
        complete=partial(_announced, plan, algorithm),
    )
    published = parts.write_part(job, out, part, workers)
    return _said(_result(plan, out, *published)) if published else None


def _result(plan: ReshardPlan, out: Path, written: dict[str, FileRecord], completed: Completed) -> ReshardResult:
    files = written | completed.beside
    size = sum(file.size for file in files.values())
    return ReshardResult(out, plan.layout, len(plan.state.tensors), len(files), size)


def _known(plan: ReshardPlan) -> dict[str, Any]:
    """What the manifest says whatever is written."""
    return {"kind": "reshard", **plan.layout.as_json(), "step": plan.state.step}


def _announced(plan: ReshardPlan, algorithm: Algorithm, staged: Path, source: dict[str, Any]) -> Completed:
    for line in remarks(plan):
        logger.warning(f"reshard: {line}")
    return _completed(plan, algorithm, staged, source)


def _completed(plan: ReshardPlan, algorithm: Algorithm, staged: Path, source: dict[str, Any]) -> Completed:
    """Verify the weights that were written, and put beside them what goes along. source: what the manifest says of
    it."""
    if plan.layout.kind.published_names:
        _require_same(staged, plan.state)
    config = [] if plan.config else [checkpoints.CONFIG]
    beside = checkpoints.Sidecars.of(plan.source, config=plan.config is not None)
    files = beside.copy(staged, algorithm, *config, "plan.json", "plan.safetensors")
    facts = {
        **_known(plan),
        **_optimizer_state(plan),
        "versions": installed(),
        "source": source,
        "provenance": plan.state.provenance,
        "left_behind": [*plan.state.left_behind, *plan.state.unread, *beside.left],
    }
    return Completed(files, facts)


def _require_same(staged: Path, state: State) -> None:
    """Import the models only where there are some: it takes longer than a small reshard."""
    from pipeline.checkpoints import loader

    loader.require_same(staged, state)


def _optimizer_state(plan: ReshardPlan) -> dict[str, str]:
    """What an expansion did with the optimizer state, where that goes along: training that starts from it must know."""
    content = manifest.read_if_any(plan.source)
    kept = content.optimizer_state if content and plan.layout.kind.holds_optimizer else None
    return {"optimizer_state": kept} if kept else {}


def _files(plan: ReshardPlan, staged: Path) -> list[OutputFile]:
    config = [checkpoints.config_of(plan.config, plan.layout)] if plan.config else []
    return config + checkpoints.files(plan.state, staged, plan.layout)
