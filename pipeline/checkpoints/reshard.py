"""Another layout, stage or world size for a checkpoint: weights, both moments, steps and hyper-parameters go along.

Nothing is computed. A model need not be known: DeepSpeed's files say their own names and shapes; only Hugging Face
files, on either side, need the model's config.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout, manifest
from pipeline.checkpoints.serialization import byte_stream
from pipeline.checkpoints.state import State
from pipeline.errors import UserError
from pipeline.records.versions import installed

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Say = Callable[[str], None]


@dataclass(frozen=True)
class ReshardPlan:
    """A rewriting that has been checked and not yet done. state: in the names that the result has. config: where Hugging Face
    files are on either side."""

    source: Path
    state: State
    layout: CheckpointLayout
    config: PretrainedConfig | None


def plan_reshard(source: Path, layout: CheckpointLayout, source_config: Path | None = None) -> ReshardPlan:
    """Check that the source has what the layout needs. Raises UserError."""
    found = checkpoints.locate(source)
    if "huggingface" in (layout.name, checkpoints.detect_layout(found)):
        state, config = checkpoints.read(found, source_config)
        state = _named(state, config, layout)
    else:
        state, config = checkpoints.raw(found), None
    if layout.name == "huggingface":
        return ReshardPlan(found, replace(state, slots={}, steps={}, groups=()), layout, config)
    _require_groups(found, state)
    return ReshardPlan(found, state, layout, config)


def _named(state: State, config: PretrainedConfig, layout: CheckpointLayout) -> State:
    """Published names for Hugging Face files; else module names, and fresh groups where the source has no optimizer."""
    from pipeline import models

    if layout.name == "huggingface":
        return state
    if not state.groups:
        state = replace(state, groups=checkpoints.fresh_groups(config, state))
    return state.renamed({row.name: row.module for row in models.architecture_of(config).rows()})


def _require_groups(source: Path, state: State) -> None:
    """Flat files hold what the groups hold: every parameter that is not frozen must be in one."""
    grouped = {name for group in state.groups for name in group.names}
    if left := [name for name in state.tensors if name not in grouped and name not in state.frozen]:
        raise UserError(
            f"{source}: {len(left)} parameters are in no optimizer group, such as '{left[0]}'; its files do not say whose they are"
        )


def remarks(plan: ReshardPlan) -> list[str]:
    """What the result will not keep, or what its reader must know."""
    said = []
    if plan.layout.name == "huggingface" and checkpoints.detect_layout(plan.source) != "huggingface":
        said.append("Hugging Face files hold weights only; the optimizer state is left behind")
    if plan.layout.name == "universal":
        said.append(
            "DeepSpeed loads universal checkpoints into stages 1 and 2 as they are; in stage 3 it gives every group the first group's "
            "hyper-parameters and lets groups share one step counter, which our engine repairs; a plain script should use --format zero --zero-stage 3"
        )
        if plan.state.frozen or plan.state.buffers:
            said.append(
                f"DeepSpeed's universal loader restores no frozen parameters ({len(plan.state.frozen)}) and no buffers ({len(plan.state.buffers)}); use --format zero"
            )
    return said


def execute_reshard(plan: ReshardPlan, out: Path, workers: int = 1, say: Say = print) -> None:
    """Write and publish the checkpoint `out`. Raises UserError, and publishes nothing."""
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out or remove it")
    for line in remarks(plan):
        say(f"reshard: {line}")
    origin = manifest.Origin.of(plan.source)
    with manifest.writing(out) as staged:
        step = int(max(plan.state.steps.values(), default=0))
        files, hashed = byte_stream.write(_files(plan, staged, step), staged, workers, True, origin.paths)
        files |= checkpoints.copy_beside(
            plan.source, staged, *([] if plan.config else [checkpoints.CONFIG]), "plan.json", "plan.safetensors"
        )
        manifest.publish(
            staged,
            out,
            {
                "kind": "reshard",
                **plan.layout.as_json(),
                "step": step,
                "versions": installed(),
                "source": origin.facts(hashed),
                "provenance": plan.state.provenance,
            },
            files,
        )
    say(
        f"reshard: {len(plan.state.tensors)} tensors, {sum(f['size'] for f in files.values()) / 2**30:.2f} GiB in {len(files)} files"
    )


def _files(plan: ReshardPlan, staged: Path, step: int) -> list[byte_stream.File]:
    config = [checkpoints.config_of(plan.config, plan.layout)] if plan.config else []
    return config + checkpoints.files(plan.state, staged, plan.layout, step=step)
