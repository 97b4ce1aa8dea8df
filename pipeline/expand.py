"""The expansion stage: read a checkpoint, grow it, verify what was written, publish. No DeepSpeed engine is started."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig

from pipeline import checkpoints, models, targets
from pipeline.checkpoints import Format, manifest
from pipeline.errors import UserError
from pipeline.folders import StageFolder, write_json
from pipeline.growth import engine as growth
from pipeline.growth import moments, probe
from pipeline.growth.engine import Growth
from pipeline.growth.method import Options
from pipeline.growth.moments import Moment
from pipeline.growth.plan import Plan
from pipeline.growth.verify import Verification, verify
from pipeline.processes import WORKERS
from pipeline.state import State, by_rows
from pipeline.versions import installed

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """An expansion that has been planned and not yet done. keeps: whether the optimizer state grows too."""

    source: Path
    state: State
    small: PretrainedConfig
    large: PretrainedConfig
    plan: Plan
    form: Format
    keeps: bool = False


def plan(source: Path, target: PretrainedConfig, options: Options, form: Format, source_config: Path | None = None,
         keeps: bool = False) -> Job:
    """Decide everything; no tensor is read. Raises UserError when the growth cannot be done as the method promises, or
    anything is missing."""
    found = checkpoints.locate(source)
    state, small = checkpoints.read(found, source_config)
    large = targets.adopt(small, target)
    tables = models.table(small), models.table(large)
    made = growth.plan(*tables, getattr(small, tables[0].eps), options)
    large.update(made.config_change)
    if keeps:
        moments.require(made, set(state.slots))
        if form.layout == "huggingface":
            raise UserError("Hugging Face files hold no optimizer state; use --format zero or universal, or --optimizer-state reset")
    return Job(found, state, small, large, made, form, keeps)


def carry_out(job: Job, out: Path, say: Say = print, workers: int = 1) -> Verification:
    """Grow, write, verify and publish the checkpoint `out`. Raises UserError, and publishes nothing, when a result that
    claims to be lossless is not."""
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    origin = manifest.Origin.of(job.source)
    with manifest.writing(out) as staged:
        say(f"expand: {len(job.plan.rows)} tensors, {words(job.plan)}")
        files, hashed = checkpoints.write(grown(job), job.large, staged, job.form, step=_step(job), workers=workers, progress=True,
                                          read=origin.paths)
        source = origin.facts(hashed)
        files |= checkpoints.copy_beside(job.source, staged)
        measured = _verify(job, staged)
        say(f"expand: {'verified' if job.plan.lossless else 'lossy, as declared (' + '; '.join(job.plan.lossy) + ')'}, {measured}")
        if job.plan.lossless and not measured.lossless:
            raise UserError(f"method '{job.plan.options.method}' claims to be lossless and is not: {measured}; nothing was published")
        write_json(staged / "plan.json", job.plan.as_json())
        manifest.publish(staged, out, _facts(job, measured, source), files | manifest.hashes(staged, ["plan.json"]))
    return measured


def grown(job: Job) -> State:
    """The grown state: each tensor is made when a writer opens it, in float32, and of it the rows that the writer is at."""
    grower, rows, read = _grower(job), job.plan.rows, partial(_read, job)
    tensors = {row.target: by_rows(row.shape, partial(grower.tensor, row, partial(read, ""))) for row in rows}
    held = State(tensors, groups=checkpoints.fresh_groups(job.large, job.state), aliases=models.table(job.large).aliases)
    if not job.keeps:
        return held
    slots = {slot: {row.target: by_rows(row.shape, Moment(grower, row, slot, partial(read, slot)).rows) for row in rows} for slot in moments.VIEWS}
    return replace(held, slots=slots, steps={row.target: job.state.steps[row.origin] for row in rows})


def _step(job: Job) -> int:
    """The step count that DeepSpeed's counters show: the source's where its optimizer state goes on."""
    return int(max(job.state.steps.values(), default=0)) if job.keeps else 0


def _grower(job: Job) -> Growth:
    return Growth(job.plan, models.table(job.small), models.table(job.large), job.large.initializer_range, dtype=torch.float32)


def _read(job: Job, slot: str, name: str, rows: range) -> Tensor:
    """Rows of a source tensor in float32; no slot: of a weight."""
    tensor = (job.state.slots[slot] if slot else job.state.tensors)[name].rows(rows).float()
    if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():  # the sum first: it may overflow, but it is fast
        what = f"{slot} of {name}" if slot else name
        raise UserError(f"{job.source}: '{what}' holds NaN or infinite values; the file is damaged (lemon check tells) or the source has "
                        "diverged; use an older checkpoint")
    return tensor


def _verify(job: Job, staged: Path) -> Verification:
    """What counts is what lies on disk: the large model is read back from the files that will be published. Files in less
    than float32 are measured too, but the verdict is that of the float32 weights they were rounded from."""
    written, config = checkpoints.read(staged)
    stored, small = partial(weight, written), partial(weight, job.state)
    if job.form.dtype == "float32":
        return verify(job.small, small, config, stored, job.plan.options)
    return verify(job.small, small, config, partial(weight, grown(job)), job.plan.options, stored=stored)


def weight(state: State, name: str) -> Tensor:
    """One tensor of a state, in float32."""
    return state.tensors[name].open().float()


def spent(job: Job, samples: int) -> dict[str, int]:
    """FLOPs of the expansion itself. grow: a scale and an add for every number of the target."""
    return {"grow": 2 * models.table(job.large).parameters, "verify": probe.spent(job.small, job.large, samples, job.plan.moved)}


def _facts(job: Job, measured: Verification, source: dict) -> dict:
    own = sum(spent(job, measured.samples).values())
    before = job.state.provenance.get("flops", "unknown")
    return {
        "kind": "expand", **job.form.as_json(), "step": 0, "method": job.plan.options.method, "optimizer_state": "grow" if job.keeps else "reset",
        "lossless": job.plan.lossless, "lossy": list(job.plan.lossy), "verification": measured.as_json(), "versions": installed(),
        "seed": job.plan.options.seed, "source": source,
        "provenance": {"origin": str(job.source), "own_flops": own, "flops": own + before if isinstance(before, int) else "unknown"},
    }


def words(plan: Plan) -> str:
    """What grows, in one line. Groups of keys and values are named where they are fewer than the heads."""
    grouped = plan.sizes["kv heads"] != plan.sizes["heads"]
    return ", ".join(f"{name} {a} -> {b}" for name, (a, b) in plan.sizes.items() if a != b and (grouped or name != "kv heads")) or "no size changes"


def describe(job: Job, fingerprint: dict, name: str, model: str, origin: str, sizes: dict) -> dict:
    """What stage.json says of an expansion."""
    options = job.plan.options
    return {
        "kind": "expand", "name": name, "model": model, "family": models.of_config(job.large).name, "sizes": sizes,
        "parameters": models.table(job.large).parameters, "origin": origin,
        "method": options.method, "depth": options.depth, "placement": options.placement, "noise": options.noise,
        "optimizer_state": "grow" if job.keeps else "reset",
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
    measured = carry_out(job, out, say, WORKERS)
    folder.ledger.truncate(-1)
    for kind, flops in spent(job, measured.samples).items():
        folder.ledger.append(step=0, kind=kind, flops=flops, samples=measured.samples if kind == "verify" else 0, tokens=0)
    folder.finish(verification=measured.as_json())
