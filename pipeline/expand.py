"""The expansion stage: read a checkpoint, grow it, verify what was written, publish. No DeepSpeed engine is started."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import Format, manifest
from pipeline.checkpoints.scratch import Scratch
from pipeline.config import load
from pipeline.errors import UserError, nearest
from pipeline.flops import cost
from pipeline.folders import StageFolder, write_json
from pipeline.growth import engine as growth
from pipeline.growth.plan import Options, Plan
from pipeline.growth.verify import Verification, verify
from pipeline.state import Entry, State
from pipeline.versions import installed

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """An expansion that has been planned and not yet done."""

    source: Path
    state: State
    small: PretrainedConfig
    large: PretrainedConfig
    plan: Plan
    form: Format


def plan(source: Path, target: PretrainedConfig, options: Options, form: Format, source_config: Path | None = None) -> Job:
    """Decide everything; no tensor is read. Raises UserError when the growth cannot be lossless, or anything is missing."""
    found = checkpoints.locate(source)
    if (found / manifest.NAME).exists():
        manifest.verify(found)
    state, small = checkpoints.read(found, source_config)
    tables = models.table(small), models.table(target)
    made = growth.plan(*tables, getattr(small, tables[0].eps), options)
    large = copy.deepcopy(target)
    large.update(made.config_change)
    return Job(found, state, small, large, made, form)


def find_target(text: str, source: Path, source_config: Path | None = None) -> PretrainedConfig:
    """The target's config: `CONFIG.yaml:MODEL`, a Hugging Face config.json, or a folder with one. Raises UserError.

    A YAML model says sizes only; what the data decided (vocabulary, positions, classes) is the source's.
    """
    path, _, name = text.partition(":")
    if Path(path).suffix not in (".yaml", ".yml"):
        place = Path(text) / checkpoints.CONFIG if Path(text).is_dir() else Path(text)
        return models.read_config(place)[1]
    known = load(path).models
    if name not in known:
        raise UserError(f"--target {text}: no model '{name}' in {path}{nearest(name, known)}")
    family, small = models.read_config(checkpoints.config_file(checkpoints.locate(source), source_config))
    if known[name].family != family.name:
        raise UserError(f"--target {text}: a '{known[name].family}', and the source is a '{family.name}'; choose a target of the source's family")
    target = copy.deepcopy(small)
    target.update(family.resize(known[name]))
    return target


def carry_out(job: Job, out: Path, say: Say = print) -> Verification:
    """Grow, write, verify and publish the checkpoint `out`. Raises UserError, and publishes nothing, when it is not lossless."""
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    staged = manifest.staging(out)
    try:
        say(f"expand: {len(job.plan.rows)} tensors, {_words(job)}")
        _write(job, staged)
        measured = _verify(job, staged)
        say(f"expand: verified, {measured}")
        if job.plan.lossless and not measured.lossless:
            raise UserError(f"method '{job.plan.options.method}' claims to be lossless and is not: {measured}; nothing was published")
        write_json(staged / "plan.json", job.plan.as_json())
        manifest.publish(staged, out, _facts(job, measured))
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return measured


def _write(job: Job, staged: Path) -> None:
    """Grow tensor by tensor into mapped scratch files, then write the chosen layout from them."""
    tables = [models.table(config) for config in (job.small, job.large)]
    grower = growth.Growth(job.plan, *tables, job.large.initializer_range)
    scratch = Scratch(staged / ".grown")
    tensors = {}
    for name, tensor in grower.tensors(lambda n: job.state.tensors[n].open()):
        _require_finite(job, name, tensor)
        held = scratch.zeros(tuple(tensor.shape))
        held.copy_(tensor)
        tensors[name] = Entry(tuple(held.shape), lambda held=held: held)
    groups = tuple(replace(group, hyper=hyper) for group, hyper in zip(checkpoints.decay_groups(job.large), _hyper(job.state), strict=True))
    checkpoints.write(State(tensors, groups=groups, aliases=tables[1].aliases), job.large, staged, job.form)
    scratch.remove()


def _require_finite(job: Job, name: str, tensor: torch.Tensor) -> None:
    if not torch.isfinite(tensor).all():
        raise UserError(f"{job.source}: '{name}' would hold NaN or infinite weights; the source has diverged, use an older checkpoint")


def _hyper(state: State) -> tuple[dict, dict]:
    """Hyper-parameters of the two groups: the source's, else AdamW's own."""
    if len(state.groups) == 2 and all(group.hyper for group in state.groups):
        decayed, kept = sorted((group.hyper for group in state.groups), key=lambda hyper: -hyper.get("weight_decay", 0.0))
        return decayed, kept
    fresh = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
    fresh.pop("params")
    return fresh, {**fresh, "weight_decay": 0.0}


def _verify(job: Job, staged: Path) -> Verification:
    """What counts is what lies on disk: the large model is read back from the files that will be published."""
    written, config = checkpoints.read(staged)
    return verify(job.small, partial(_open, job.state), config, partial(_open, written), seed=job.plan.options.seed)


def _open(state: State, name: str) -> torch.Tensor:
    return state.tensors[name].open().float()


def spent(job: Job, samples: int) -> dict[str, int]:
    """FLOPs of the expansion itself. grow: a scale and an add for every number of the target. verify: both models
    forward on the probe, in two precisions."""
    forward = [cost(models.table(config), _probe_positions(config)).forward for config in (job.small, job.large)]
    return {"grow": 2 * models.table(job.large).parameters, "verify": 2 * samples * sum(forward)}


def _probe_positions(config: PretrainedConfig) -> dict[str, int]:
    length = getattr(config, "max_position_embeddings", None)
    facts = {"block": length, "scored": length}
    return models.of_config(config).positions(config, facts)


def _facts(job: Job, measured: Verification) -> dict:
    own = sum(spent(job, measured.samples).values())
    before = job.state.provenance.get("flops", "unknown")
    held = job.source / manifest.NAME
    return {
        "kind": "expand", **job.form.as_json(), "step": 0, "verification": measured.as_json(), "versions": installed(),
        "seed": job.plan.options.seed, "source": {"path": str(job.source), "manifest_sha256": manifest.sha256(held) if held.exists() else None},
        "provenance": {"origin": str(job.source), "own_flops": own, "flops": own + before if isinstance(before, int) else "unknown"},
    }


def _words(job: Job) -> str:
    grown = [f"{name} {a} -> {b}" for name, (a, b) in job.plan.sizes.items() if a != b]
    return ", ".join(grown) or "no size changes"


def describe(job: Job, fingerprint: dict, name: str, model: str, origin: str, sizes: dict) -> dict:
    """What stage.json says of an expansion."""
    options = job.plan.options
    return {
        "kind": "expand", "name": name, "model": model, "family": models.of_config(job.large).name, "sizes": sizes,
        "parameters": models.table(job.large).parameters, "origin": origin,
        "method": options.method, "depth": options.depth, "placement": options.placement, "noise": options.noise,
        "lossless": job.plan.lossless, "config_change": job.plan.config_change, "format": job.form.as_json(),
        "versions": installed(), "fingerprint": fingerprint,
    }


def into_stage(job: Job, folder: StageFolder, facts: dict, say: Say = print) -> None:
    """Run the expansion as a stage of a run: facts, plan and ledger beside the checkpoint."""
    folder.begin(**facts)
    write_json(folder.path / "plan.json", job.plan.as_json())
    out = folder.checkpoints / "step-0000000"
    if out.exists():  # published, and killed before the stage was marked finished
        shutil.rmtree(out)
    measured = carry_out(job, out, say)
    folder.ledger.truncate(-1)
    for kind, flops in spent(job, measured.samples).items():
        folder.ledger.append(step=0, kind=kind, flops=flops, samples=measured.samples if kind == "verify" else 0, tokens=0)
    folder.finish(verification=measured.as_json())

