"""The expansion stage: read a checkpoint, grow it, verify what was written, publish. No DeepSpeed engine is started."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, manifest
from pipeline.checkpoints.state import State, by_rows
from pipeline.errors import UserError
from pipeline.expansion import target as targets
from pipeline.growth import execute as growth
from pipeline.growth import optimizer_state
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.method import ExpansionOptions
from pipeline.growth.optimizer_state import Moment
from pipeline.growth.plan import GrowthPlan
from pipeline.growth.verification import probe
from pipeline.growth.verification.equivalence import Verification, verify
from pipeline.records.processes import WORKERS
from pipeline.records.run_folder import StageFolder, write_json
from pipeline.records.versions import installed

Say = Callable[[str], None]


@dataclass(frozen=True)
class ExpansionPlan:
    """An expansion that has been planned and not yet done. grow_optimizer_state: whether the optimizer state grows too."""

    source: Path
    state: State
    small: PretrainedConfig
    large: PretrainedConfig
    growth: GrowthPlan
    layout: CheckpointLayout
    grow_optimizer_state: bool = False


def plan_expansion(
    source: Path,
    target: PretrainedConfig,
    options: ExpansionOptions,
    layout: CheckpointLayout,
    source_config: Path | None = None,
    grow_optimizer_state: bool = False,
) -> ExpansionPlan:
    """Decide everything; no tensor is read. Raises UserError when the growth cannot be done as the method promises, or
    anything is missing."""
    found = checkpoints.locate(source)
    state, small = checkpoints.read(found, source_config)
    large = targets.adopt(small, target)
    architectures = models.architecture_of(small), models.architecture_of(large)
    made = growth.plan_growth(*architectures, options)
    large.update(made.config_change)
    if grow_optimizer_state:
        optimizer_state.require(made, set(state.slots))
        if layout.name == "huggingface":
            raise UserError(
                "Hugging Face files hold no optimizer state; use --format zero or universal, or --optimizer-state reset"
            )
    return ExpansionPlan(found, state, small, large, made, layout, grow_optimizer_state)


def execute_expansion(expansion: ExpansionPlan, out: Path, say: Say = print, workers: int = 1) -> Verification:
    """Grow, write, verify and publish the checkpoint `out`. Raises UserError, and publishes nothing, when a result that
    claims to be lossless is not."""
    if out.exists():
        raise UserError(f"{out}: exists already; choose another --out or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    origin = manifest.Origin.of(expansion.source)
    with manifest.writing(out) as staged:
        say(f"expand: {len(expansion.growth.rows)} tensors, {words(expansion.growth)}")
        files, hashed = checkpoints.write(
            grown(expansion),
            expansion.large,
            staged,
            expansion.layout,
            step=_step(expansion),
            workers=workers,
            progress=True,
            read=origin.paths,
        )
        source = origin.facts(hashed)
        files |= checkpoints.copy_beside(expansion.source, staged)
        measured = _verify(expansion, staged)
        say(
            f"expand: {'verified' if expansion.growth.lossless else 'lossy, as declared (' + '; '.join(expansion.growth.lossy) + ')'}, {measured}"
        )
        if expansion.growth.lossless and not measured.lossless:
            raise UserError(
                f"method '{expansion.growth.options.method}' claims to be lossless and is not: {measured}; nothing was published"
            )
        write_json(staged / "plan.json", expansion.growth.as_json())
        manifest.publish(
            staged, out, _facts(expansion, measured, source), files | manifest.hashes(staged, ["plan.json"])
        )
    return measured


def grown(expansion: ExpansionPlan) -> State:
    """The grown state: each tensor is made when a writer opens it, in float32, and of it the rows that the writer is at."""
    grower, rows, read = _grower(expansion), expansion.growth.rows, partial(_read, expansion)
    tensors = {row.target: by_rows(row.shape, partial(grower.tensor, row, partial(read, ""))) for row in rows}
    held = State(
        tensors,
        groups=checkpoints.fresh_groups(expansion.large, expansion.state),
        aliases=models.architecture_of(expansion.large).aliases,
    )
    if not expansion.grow_optimizer_state:
        return held
    slots = {
        slot: {row.target: by_rows(row.shape, Moment(grower, row, slot, partial(read, slot)).rows) for row in rows}
        for slot in optimizer_state.VIEWS
    }
    return replace(held, slots=slots, steps={row.target: expansion.state.steps[row.origin] for row in rows})


def _step(expansion: ExpansionPlan) -> int:
    """The step count that DeepSpeed's counters show: the source's where its optimizer state goes on."""
    return int(max(expansion.state.steps.values(), default=0)) if expansion.grow_optimizer_state else 0


def _grower(expansion: ExpansionPlan) -> PlanExecutor:
    return PlanExecutor(
        expansion.growth,
        models.architecture_of(expansion.small),
        models.architecture_of(expansion.large),
        models.initializer_range(expansion.large),
        dtype=torch.float32,
    )


def _read(expansion: ExpansionPlan, slot: str, name: str, rows: range) -> Tensor:
    """Rows of a source tensor in float32; no slot: of a weight."""
    tensor = (expansion.state.slots[slot] if slot else expansion.state.tensors)[name].rows(rows).float()
    if (
        not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all()
    ):  # the sum first: it may overflow, but it is fast
        what = f"{slot} of {name}" if slot else name
        raise UserError(
            f"{expansion.source}: '{what}' holds NaN or infinite values; the file is damaged (lemon check tells) or the source has "
            "diverged; use an older checkpoint"
        )
    return tensor


def _verify(expansion: ExpansionPlan, staged: Path) -> Verification:
    """What counts is what lies on disk: the large model is read back from the files that will be published. Files in less
    than float32 are measured too, but the verdict is that of the float32 weights they were rounded from."""
    written, config = checkpoints.read(staged)
    stored, small = partial(weight, written), partial(weight, expansion.state)
    if expansion.layout.dtype == "float32":
        return verify(expansion.small, small, config, stored, expansion.growth.options)
    return verify(
        expansion.small, small, config, partial(weight, grown(expansion)), expansion.growth.options, stored=stored
    )


def weight(state: State, name: str) -> Tensor:
    """One tensor of a state, in float32."""
    return state.tensors[name].open().float()


def spent(expansion: ExpansionPlan, samples: int) -> dict[str, int]:
    """FLOPs of the expansion itself. grow: a scale and an add for every number of the target."""
    return {
        "grow": 2 * models.architecture_of(expansion.large).parameters,
        "verify": probe.spent(expansion.small, expansion.large, samples, expansion.growth.moved),
    }


def _facts(expansion: ExpansionPlan, measured: Verification, source: dict) -> dict:
    own = sum(spent(expansion, measured.samples).values())
    before = expansion.state.provenance.get("flops", "unknown")
    return {
        "kind": "expand",
        **expansion.layout.as_json(),
        "step": 0,
        "method": expansion.growth.options.method,
        "optimizer_state": "grow" if expansion.grow_optimizer_state else "reset",
        "lossless": expansion.growth.lossless,
        "lossy": list(expansion.growth.lossy),
        "verification": measured.as_json(),
        "versions": installed(),
        "seed": expansion.growth.options.seed,
        "source": source,
        "provenance": {
            "origin": str(expansion.source),
            "own_flops": own,
            "flops": own + before if isinstance(before, int) else "unknown",
        },
    }


def words(plan: GrowthPlan) -> str:
    """What grows, in one line. Groups of keys and values are named where they are fewer than the heads."""
    grouped = plan.sizes["kv heads"] != plan.sizes["heads"]
    return (
        ", ".join(
            f"{name} {a} -> {b}" for name, (a, b) in plan.sizes.items() if a != b and (grouped or name != "kv heads")
        )
        or "no size changes"
    )


def describe(expansion: ExpansionPlan, fingerprint: dict, name: str, model: str, origin: str, sizes: dict) -> dict:
    """What stage.json says of an expansion."""
    options = expansion.growth.options
    return {
        "kind": "expand",
        "name": name,
        "model": model,
        "family": models.of_config(expansion.large).name,
        "sizes": sizes,
        "parameters": models.architecture_of(expansion.large).parameters,
        "origin": origin,
        "method": options.method,
        "depth": options.depth,
        "placement": options.placement,
        "noise": options.noise,
        "optimizer_state": "grow" if expansion.grow_optimizer_state else "reset",
        "lossless": expansion.growth.lossless,
        "config_change": expansion.growth.config_change,
        "format": expansion.layout.as_json(),
        "versions": installed(),
        "fingerprint": fingerprint,
    }


def into_stage(expansion: ExpansionPlan, folder: StageFolder, facts: dict, say: Say = print) -> None:
    """Run the expansion as a stage of a run: facts, plan and ledger beside the checkpoint."""
    folder.begin(**facts)
    write_json(folder.path / "plan.json", expansion.growth.as_json())
    out = folder.checkpoints / "step-0000000"
    if out.exists():  # published, and killed before the stage was marked finished
        shutil.rmtree(out)
    measured = execute_expansion(expansion, out, say, WORKERS)
    folder.ledger.truncate(-1)
    for kind, flops in spent(expansion, measured.samples).items():
        folder.ledger.append(
            step=0, kind=kind, flops=flops, samples=measured.samples if kind == "verify" else 0, tokens=0
        )
    folder.finish(verification=measured.as_json())
