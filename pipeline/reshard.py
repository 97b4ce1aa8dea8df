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
from pipeline.checkpoints import Format, manifest, stream
from pipeline.errors import UserError
from pipeline.state import State
from pipeline.versions import installed

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """A rewriting that has been checked and not yet done. state: in the names that the result has. config: where Hugging Face
    files are on either side."""

    source: Path
    state: State
    form: Format
    config: PretrainedConfig | None


def plan(source: Path, form: Format, source_config: Path | None = None) -> Job:
    """Check that the source has what the layout needs. Raises UserError."""
    found = checkpoints.locate(source)
    if "huggingface" in (form.layout, checkpoints.layout(found)):
        state, config = checkpoints.read(found, source_config)
        state = _named(state, config, form)
    else:
        state, config = checkpoints.raw(found), None
    if form.layout == "huggingface":
        return Job(found, replace(state, slots={}, steps={}, groups=()), form, config)
    _require_groups(found, state)
    return Job(found, state, form, config)


def _named(state: State, config: PretrainedConfig, form: Format) -> State:
    """Published names for Hugging Face files; else module names, and fresh groups where the source has no optimizer."""
    from pipeline import models

    if form.layout == "huggingface":
        return state
    if not state.groups:
        state = replace(state, groups=checkpoints.fresh_groups(config, state))
    return state.renamed({row.name: row.module for row in models.table(config).rows()})


def _require_groups(source: Path, state: State) -> None:
    """Flat files hold what the groups hold: every parameter that is not frozen must be in one."""
    grouped = {name for group in state.groups for name in group.names}
    if left := [name for name in state.tensors if name not in grouped and name not in state.frozen]:
        raise UserError(f"{source}: {len(left)} parameters are in no optimizer group, such as '{left[0]}'; its files do not say whose they are")


def remarks(job: Job) -> list[str]:
    """What the result will not keep, or what its reader must know."""
    said = []
    if job.form.layout == "huggingface" and checkpoints.layout(job.source) != "huggingface":
        said.append("Hugging Face files hold weights only; the optimizer state is left behind")
    if job.form.layout == "universal":
        said.append("DeepSpeed loads universal checkpoints into stages 1 and 2 as they are; in stage 3 it gives every group the first group's "
                    "hyper-parameters and lets groups share one step counter, which our engine repairs; a plain script should use --format zero --zero-stage 3")
        if job.state.frozen or job.state.buffers:
            said.append(f"DeepSpeed's universal loader restores no frozen parameters ({len(job.state.frozen)}) and no buffers ({len(job.state.buffers)}); use --format zero")
    return said


def carry_out(job: Job, out: Path, workers: int = 1, say: Say = print) -> None:
    """Write and publish the checkpoint `out`. Raises UserError, and publishes nothing."""
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out or remove it")
    for line in remarks(job):
        say(f"reshard: {line}")
    origin = manifest.Origin.of(job.source)
    with manifest.writing(out) as staged:
        step = int(max(job.state.steps.values(), default=0))
        files, hashed = stream.write(_files(job, staged, step), staged, workers, True, origin.paths)
        files |= checkpoints.copy_beside(job.source, staged, *([] if job.config else [checkpoints.CONFIG]), "plan.json")
        manifest.publish(staged, out, {
            "kind": "reshard", **job.form.as_json(), "step": step, "versions": installed(), "source": origin.facts(hashed), "provenance": job.state.provenance,
        }, files)
    say(f"reshard: {len(job.state.tensors)} tensors, {sum(f['size'] for f in files.values()) / 2**30:.2f} GiB in {len(files)} files")


def _files(job: Job, staged: Path, step: int) -> list[stream.File]:
    config = [checkpoints.config_of(job.config, job.form)] if job.config else []
    return config + checkpoints.files(job.state, staged, job.form, step=step)
