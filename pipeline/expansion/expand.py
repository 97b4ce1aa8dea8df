"""The expansion stage: read a checkpoint, grow it, verify what was written, publish. No DeepSpeed engine is started."""

import logging
import shutil
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import checkpoints, models
from pipeline.checkpoints import loader, manifest, parts, publish
from pipeline.checkpoints.parts_job import Job, Part
from pipeline.checkpoints.publish import Completed
from pipeline.checkpoints.sidecars import README, SOURCE_README
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import GrownTensor, LazyTensor
from pipeline.errors import UserError
from pipeline.expansion.planning import ExpansionPlan, weight
from pipeline.expansion.sizes_beside import fit_to_sizes
from pipeline.growth import new_entries, plan_file
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.making import making_cost
from pipeline.growth.optimizer_state import GrownSlot, KeptSlot
from pipeline.growth.plan import GrowthPlan, TensorPlan
from pipeline.growth.verification import probe
from pipeline.growth.verification.equivalence import Verification, verify
from pipeline.models.streaming import ReadModel
from pipeline.optim.optimizers import Slot
from pipeline.records import data_position
from pipeline.records.file_hashes import FASTEST, Algorithm, hashes
from pipeline.records.processes import WORKERS
from pipeline.records.run_folder import StageFolder
from pipeline.records.stage_facts import NEW_ENTRIES, ExpandFacts
from pipeline.records.stage_records import LedgerEntry
from pipeline.records.versions import installed

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpansionResult:
    """A checkpoint that was grown, verified and published."""

    path: Path
    growth: GrowthPlan
    verification: Verification

    @property
    def lossless(self) -> bool:
        """Whether the large model computes the small one's function, as measured."""
        return self.verification.lossless

    def __repr__(self) -> str:
        verdict = "lossless" if self.lossless else "lossy"
        return f"ExpansionResult('{self.path}': {size_changes(self.growth)}; {verdict}, {self.verification})"


def execute_expansion(
    expansion: ExpansionPlan, out: Path, workers: int = 1, algorithm: Algorithm = FASTEST
) -> ExpansionResult:
    """Grow, write, verify and publish the checkpoint `out`, sealed by `algorithm`. Raises UserError, and publishes
    nothing, when a result that claims to be lossless is not."""
    origin = manifest.Origin.of(expansion.source)
    with publish.writing(out) as staged:
        _announce(expansion)
        logger.debug(f"expand: {expansion.source} -> {out}, {expansion.layout.words}")
        files, hashed = checkpoints.write(
            grown(expansion),
            expansion.large,
            staged,
            expansion.layout,
            workers=workers,
            read=origin.files(algorithm),
            algorithm=algorithm,
        )
        completed = _completed(expansion, algorithm, staged, origin.facts(hashed))
        publish.publish(staged, out, completed.facts, files | completed.beside)
    return _said(expansion, out, completed)


def expand_part(
    expansion: ExpansionPlan, out: Path, part: Part, workers: int, algorithm: Algorithm
) -> ExpansionResult | None:
    """Grow and write a part of the files of `out`; whoever ends last verifies and publishes it, the others return None.
    Raises UserError."""
    state, layout = grown(expansion), expansion.layout
    job = Job(
        name="expand",
        known=_known(expansion),
        more={"growth": plan_file.digest(expansion.growth), **_operator(expansion)},
        config=checkpoints.config_bytes(expansion.large, layout),
        origin=manifest.Origin.of(expansion.source),
        algorithm=algorithm,
        files=lambda folder: checkpoints.output_of(state, expansion.large, folder, layout),
        complete=partial(_announced, expansion, algorithm),
    )
    published = parts.write_part(job, out, part, workers)
    return _said(expansion, out, published[1]) if published else None


def _announce(expansion: ExpansionPlan) -> None:
    for line in expansion.remarks:
        logger.warning(f"expand: {line}")
    logger.info(f"expand: {len(expansion.growth.tensors)} tensors, {size_changes(expansion.growth)}")


def _announced(expansion: ExpansionPlan, algorithm: Algorithm, staged: Path, source: dict[str, Any]) -> "_Verified":
    _announce(expansion)
    return _completed(expansion, algorithm, staged, source)


def _said(expansion: ExpansionPlan, out: Path, completed: "_Verified") -> ExpansionResult:
    loading = "" if expansion.continued_by else expansion.layout.how_to_load(out, schedule=bool(expansion.carried))
    logger.info(f"expand: wrote {out}{loading}")
    return ExpansionResult(out, expansion.growth, completed.measured)


@dataclass(frozen=True)
class _Verified(Completed):
    """measured: of the weights that lie there."""

    measured: Verification


def _completed(expansion: ExpansionPlan, algorithm: Algorithm, staged: Path, source: dict[str, Any]) -> _Verified:
    """Put beside the weights in `staged` what goes along, verify them, and save the plan. source: what the manifest
    says of it. Raises UserError where the result is not what it claims to be."""
    beside = checkpoints.Sidecars.of(expansion.source)
    files = beside.copy(staged, algorithm, renamed={README: SOURCE_README})
    files |= hashes(staged, fit_to_sizes(staged, expansion.small, expansion.large), algorithm)
    begun = time.monotonic()
    measured = _verify(expansion, staged)
    logger.debug(f"expand: both models ran on {measured.samples} samples in {time.monotonic() - begun:.1f} s")
    judge(expansion.growth, measured)
    files |= hashes(staged, plan_file.save(expansion.growth, staged), algorithm)
    left = {"left_behind": [*expansion.left_behind, *beside.left]}
    return _Verified(files, _facts(expansion, measured, source) | left, measured)


def judge(growth: GrowthPlan, measured: Verification) -> None:
    """Log what was measured. Raises UserError where a method's claim to be lossless does not hold."""
    for layer, drift in zip(growth.source.layer_names(), measured.drift, strict=False):
        logger.debug(f"expand: residual stream after layer {layer}: relative difference {drift:.1e}")
    for space, measure in measured.symmetry.items():
        logger.debug(f"expand: gradients of copies in '{space}' differ by {measure:.1e}")
    if growth.lossless and not measured.lossless:
        raise UserError(
            f"method '{growth.options.method}' claims to be lossless and is not: {measured}; nothing was published"
            + (f"; less noise than {growth.noise:g} leaves less to round" if growth.noise > 1 else "")
        )
    if growth.lossless:
        logger.info(f"expand: verified, {measured}")
    else:
        logger.warning(f"expand: lossy, as declared ({'; '.join(growth.lossy)}), {measured}")


@dataclass(frozen=True)
class SourceReader:
    """Reads rows of the source's tensors in float32, and refuses what is not finite. slot: of the optimizer; None:
    weights."""

    folder: Path
    tensors: dict[str, LazyTensor]
    slot: Slot | None = None

    def __call__(self, name: str, rows: range) -> Tensor:
        tensor = self.tensors[name].read_rows(rows).float()
        # the sum first: it may overflow, but it is fast
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            what = f"{self.slot.name} of {name}" if self.slot else name
            raise UserError(
                f"{self.folder}: '{what}' holds NaN or infinite values; the file is damaged (lemon check tells) or the "
                "source has diverged; use an older checkpoint"
            )
        return tensor


@dataclass(frozen=True)
class GrownWeight:
    """One target tensor, grown row by row when a writer asks for it."""

    executor: PlanExecutor
    tensor_plan: TensorPlan
    read: SourceReader

    def rows(self, rows: range) -> Tensor:
        return self.executor.tensor(self.tensor_plan, self.read, rows)


def grown(expansion: ExpansionPlan) -> State:
    """The grown state: each tensor is made when a writer opens it, in float32, and of it the rows that the writer is
    at."""
    executor, state = PlanExecutor(expansion.growth, torch.float32), expansion.state
    planned = expansion.growth.tensors
    read = SourceReader(expansion.source, state.tensors)
    weights: dict[str, LazyTensor] = {
        each.target: GrownTensor(each.shape, GrownWeight(executor, each, read)) for each in planned
    }
    grouping = expansion.grouping
    fresh = State(
        weights,
        groups=grouping.groups,
        frozen=grouping.frozen,
        aliases=expansion.growth.target.aliases,
        sub_group=None if expansion.continued_by else state.sub_group,
    )
    if expansion.moments == "reset":
        return fresh
    slots = {slot.name: _grown_slot(expansion, executor, slot) for slot in expansion.optimizer.slots}
    engine = {key: kept for key, kept in expansion.carried.get("engine", {}).items() if key != NEW_ENTRIES}
    return replace(
        fresh,
        slots=slots,
        step=state.step,
        steps=_grown_steps(expansion),
        engine=engine | new_entries.written(expansion.new_entries),
        scaling=expansion.carried.get("scaling", {}),
    )


def _grown_steps(expansion: ExpansionPlan) -> dict[str, float]:
    """The optimizer's counts: those of the parameters from which others come, for what comes from none the largest."""
    held, planned = expansion.state.steps, expansion.growth.tensors
    counted = {each.target: held[each.origin] for each in planned if each.origin in held}
    most, optimizer = expansion.state.counted, expansion.optimizer
    counting = (group for group in expansion.grouping.groups if optimizer.counts_steps_in(group.hyper))
    names = {name for group in counting for name in group.names}
    fresh = (each.target for each in planned if each.origin is None and each.target in names)
    return counted | ({} if most is None else dict.fromkeys(fresh, most))


def _grown_slot(expansion: ExpansionPlan, executor: PlanExecutor, slot: Slot) -> dict[str, LazyTensor]:
    read = SourceReader(expansion.source, expansion.state.slots.get(slot.name, {}), slot)
    holders = expansion.grouping.holders(expansion.optimizer, slot)
    going_on = new_entries.heirs(expansion.growth)

    def rows(each: TensorPlan) -> GrownSlot | KeptSlot:
        if expansion.moments == "grow":
            return GrownSlot(executor, each, slot, read)
        param = executor.params[each.target]
        return KeptSlot(executor, each, read, param.layer is None or param.layer in going_on[param.stack])

    planned = (each for each in expansion.growth.tensors if each.target in holders)
    return {each.target: GrownTensor(each.shape, rows(each)) for each in planned}


def _verify(expansion: ExpansionPlan, staged: Path) -> Verification:
    """What counts is what lies on disk: the large model is read back from the files that will be published. Files in
    less than float32 are measured too, but the verdict is that of the float32 weights they were rounded from."""
    stored = loader.runnable(staged, *checkpoints.read(staged), staged / checkpoints.CONFIG)
    if expansion.layout.dtype == "float32":
        return verify(expansion.function, stored, expansion.growth)
    exact = ReadModel(stored.config, partial(weight, grown(expansion)))
    return verify(expansion.function, exact, expansion.growth, stored=stored)


def spent(expansion: ExpansionPlan, samples: int) -> dict[str, int]:
    """FLOPs of the expansion itself. grow: a scale and an add for every number of the target, and the products of dense
    maps."""
    return {
        "grow": 2 * models.architecture_of(expansion.large).parameters + making_cost(expansion.growth).forward,
        "verify": probe.spent(expansion.small, expansion.large, samples, expansion.growth.moves_norm_affines),
    }


def _facts(expansion: ExpansionPlan, measured: Verification, source: dict[str, Any]) -> dict[str, Any]:
    fit = _fit(expansion, source)
    flops = sum(spent(expansion, measured.samples).values()) + (fit["flops"] if fit else 0)
    before = expansion.state.provenance.get("flops", "unknown")
    return {
        **_known(expansion),
        "verification": measured.as_json(),
        "versions": installed(),
        "seed": expansion.growth.options.seed,
        **({"fit": fit} if fit else {}),
        "growth": plan_file.digest(expansion.growth),
        **_operator(expansion),
        "source": source,
        "provenance": {
            "origin": str(expansion.source),
            "own_flops": flops,
            "flops": flops + before if isinstance(before, int) else "unknown",
            **_samples_before(expansion),
        },
    }


def _samples_before(expansion: ExpansionPlan) -> dict[str, Any]:
    """How far the data were read for the source and the fit of its growth, as far as that is known: a fit knows of its
    source."""
    fit = expansion.fitted.checkpoint if expansion.fitted else None
    known = manifest.read(fit).provenance if fit else {}
    samples = known.get(data_position.KEY) or expansion.state.provenance.get(data_position.KEY)
    return {data_position.KEY: samples} if samples else {}


def _known(expansion: ExpansionPlan) -> dict[str, Any]:
    """What the manifest says whatever is measured."""
    return {
        "kind": "expand",
        **expansion.layout.as_json(),
        "step": 0,
        "method": expansion.growth.options.method,
        "optimizer_state": expansion.moments,
        "lossless": expansion.growth.lossless,
        "lossy": list(expansion.growth.lossy),
    }


def _operator(expansion: ExpansionPlan) -> dict[str, Any]:
    return {"operator": expansion.operator.origin} if expansion.operator else {}


def _fit(expansion: ExpansionPlan, source: dict[str, Any]) -> dict[str, Any] | None:
    """What fitting the growth was and has cost; by an operator once more what its own fit has cost. Raises UserError
    where it was fitted to another source than `source` says."""
    if expansion.operator:
        return expansion.operator.fit
    return expansion.fitted.of(source) if expansion.fitted else None


def size_changes(plan: GrowthPlan) -> str:
    """What grows, in one line. Groups of keys and values are named where they are fewer than the heads."""
    changes = [
        f"{name} {before} -> {after}"
        for name, (before, after) in plan.sizes.items()
        if before != after and not _as_many_as_heads(name, plan)
    ]
    return ", ".join(changes) or "no size changes"


def _as_many_as_heads(name: str, plan: GrowthPlan) -> bool:
    """Whether `name` counts groups of keys and values that are single heads."""
    return name.endswith("kv heads") and plan.sizes[name] == plan.sizes[name.removesuffix("kv heads") + "heads"]


def describe(
    expansion: ExpansionPlan, fingerprint: dict[str, Any], name: str, model: str, origin: str, sizes: dict[str, int]
) -> ExpandFacts:
    """What stage.json says of an expansion."""
    options = expansion.growth.options
    return ExpandFacts(
        name=name,
        model=model,
        family=models.of_config(expansion.large).name,
        sizes=sizes,
        parameters=models.architecture_of(expansion.large).parameters,
        origin=origin,
        method=options.method,
        method_options=options.options.model_dump(),
        optimizer_state=expansion.moments,
        lossless=expansion.growth.lossless,
        config_change=expansion.growth.config_change,
        fit=expansion.fitted.facts if expansion.fitted else None,
        layout=expansion.layout.as_json(),
        versions=installed(),
        fingerprint=fingerprint,
    )


def into_stage(expansion: ExpansionPlan, folder: StageFolder, facts: ExpandFacts, algorithm: Algorithm) -> None:
    """Run the expansion as a stage of a run: facts, plan and ledger beside the checkpoint, which `algorithm` seals."""
    folder.begin(facts)
    plan_file.save(expansion.growth, folder.path)
    out = folder.checkpoints / "step-0000000"
    if out.exists():  # published, and killed before the stage was marked finished
        shutil.rmtree(out)
    measured = execute_expansion(expansion, out, WORKERS, algorithm).verification
    folder.ledger.restart(-1)
    for kind, flops in spent(expansion, measured.samples).items():
        samples = measured.samples if kind == "verify" else 0
        folder.ledger.append(LedgerEntry(step=0, kind=kind, flops=flops, samples=samples, tokens=0))
    folder.finish(facts.model_copy(update={"verification": measured.as_json()}))
