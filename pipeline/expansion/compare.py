"""Verifying two checkpoints against each other, whoever made them: `lemon verify SMALL LARGE`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, loader, manifest
from pipeline.checkpoints.state import State
from pipeline.errors import UserError
from pipeline.expansion import expand, planning
from pipeline.growth import conditions, methods, plan_file
from pipeline.growth.plan import GrowthPlan, build_plan
from pipeline.growth.verification.equivalence import GATES, Verification, verify
from pipeline.growth.verification.unseen import require_equal_function
from pipeline.models.agreement import contradictions
from pipeline.models.streaming import ReadModel, RunnableModel

SLACK = 2**-20
"""How far the numbers of a regrown float32 tensor may be off, over its largest: other processors add in another order.
5e-8 was seen between vector instructions and none."""


@dataclass(frozen=True)
class Model:
    """A checkpoint that is compared. function: as it runs."""

    folder: Path
    state: State
    config: PretrainedConfig
    function: RunnableModel

    @classmethod
    def read(cls, path: Path, config: Path | None = None) -> "Model":
        folder = checkpoints.locate(path)
        file = checkpoints.config_file(folder, config)
        state, read = checkpoints.read(folder, file)
        return cls(folder, state, read, loader.runnable(folder, state, read, file))

    @property
    def rounded(self) -> bool:
        """Whether it is stored in less than float32."""
        return next(iter(self.state.tensors.values())).tensor().dtype.itemsize < torch.float32.itemsize


@dataclass(frozen=True)
class Comparison:
    """What was measured between a small and a large checkpoint. rounding: whether the difference includes the rounding
    of weights that are stored in less than float32. remarks: what to know of a side, each behind the side's name."""

    small: Path
    large: Path
    plan: GrowthPlan
    verification: Verification
    rounding: bool = False
    remarks: tuple[tuple[str, str], ...] = ()

    @property
    def lossless(self) -> bool:
        """Whether the large model computes the small one's function."""
        return self.verification.lossless

    def as_json(self) -> dict[str, Any]:
        places = {"small": str(self.small), "large": str(self.large)}
        return {**places, "method": self.plan.options.method, **self.verification.as_json()}

    def __repr__(self) -> str:
        verdict = "lossless" if self.lossless else "lossy"
        return f"Comparison('{self.small}' -> '{self.large}': {verdict}, {self.verification})"


def compare(small: Path, large: Path, source_config: Path | None = None) -> Comparison:
    """Measure how far `large` computes the function of `small`. How it was grown is read from its plan; without one it
    is taken for LEMON's. Of a `large` that has a plan and is stored in less than float32, the verdict is that of the
    float32 weights, grown once more. Raises UserError for models of which one cannot have grown from the other, for
    configs that say another function, and for stored weights that are not the grown ones, rounded."""
    before, after = Model.read(small, source_config), Model.read(large)
    plan, remarks = recorded(before, after), _remarks_on_sides(before, after)
    require_equal_function(before.config, after.config, plan)
    if not (after.rounded and (after.folder / plan_file.PLAN).exists()):
        measured = verify(before.function, after.function, plan)
        return Comparison(small, large, plan, measured, after.rounded, remarks)
    exact = ReadModel(after.config, partial(planning.weight, _unrounded(before, after, plan)))
    measured = verify(before.function, exact, plan, stored=after.function)
    return Comparison(small, large, plan, measured, remarks=remarks)


def _remarks_on_sides(before: Model, after: Model) -> tuple[tuple[str, str], ...]:
    """What the files of both sides decide, what is said of both once; and keys that contradict each other and are in
    no list of the family's, so that nobody here knows whether they make another function."""
    known, said = models.of_config(before.config).keys.function, before.state.decided_by_files.values()
    unknown = (line for key, line in contradictions(before.config, after.config).items() if key not in known)
    return (
        *(("source", line) for line in said),
        *(("result", line) for line in after.state.decided_by_files.values() if line not in said),
        *(("result", f"{line}; that key is in no list of the family's and was not compared") for line in unknown),
    )


def recorded(before: Model, after: Model) -> GrowthPlan:
    """The plan beside `after`, else LEMON's. Raises UserError when `after` cannot have grown from `before`."""
    source, target = models.architecture_of(before.config), models.architecture_of(after.config)
    planned = (after.folder / plan_file.PLAN).exists()
    if reasons := conditions.impossible(source, target, fresh_layers=planned):
        raise UserError(f"{after.folder} cannot have grown from {before.folder}: {'; '.join(reasons)}")
    init_std = models.initializer_range(after.config)
    if planned:
        return plan_file.load(after.folder, source, target, init_std)
    return build_plan(source, target, methods.parse(), init_std)


def _unrounded(before: Model, after: Model, plan: GrowthPlan) -> State:
    """The float32 weights that `after` was rounded from: grown once more, each when it is opened. Raises UserError when
    any stored tensor is not their rounding, for the verdict would be that of other weights."""
    layout = CheckpointLayout("huggingface")
    sides = before.folder, before.state, before.function, before.config, after.config
    exact = expand.grown(planning.ExpansionPlan(*sides, plan, layout))
    for name, tensor in after.state.tensors.items():
        stored = tensor.tensor()
        if count := _count_different(exact.tensors[name].tensor(), stored):
            dtype = str(stored.dtype).removeprefix("torch.")
            raise UserError(
                f"{after.folder}: '{name}' is not what its {plan_file.PLAN} makes of {before.folder}, rounded to "
                f"{dtype} ({count} of {stored.numel()} numbers differ); name the source it grew from, or remove "
                f"{plan_file.PLAN} and {manifest.NAME} to measure what is stored by LEMON's rules"
            )
    return exact


def _count_different(grown: Tensor, stored: Tensor) -> int:
    """How many stored numbers are not the grown ones after rounding, give or take SLACK. Rounding keeps the order, so
    that the bounds may be rounded instead."""
    slack = SLACK * grown.abs().max()
    within = (stored >= (grown - slack).to(stored.dtype)) & (stored <= (grown + slack).to(stored.dtype))
    return int((~within).sum())


def show(comparison: Comparison, console: Console) -> None:
    """Print the measurements and the verdict."""
    measured, plan = comparison.verification, comparison.plan
    console.print(_table(measured, plan))
    for line in (*_symmetry(measured), *_remarks(measured, comparison)):
        console.print(line, markup=False, highlight=False)
    verdict = "[green]lossless[/green]" if measured.lossless else "[red]lossy[/red]"
    console.print(
        f"verdict      {verdict} (method '{plan.options.method}', {measured.samples} samples)", highlight=False
    )


def _table(measured: Verification, plan: GrowthPlan) -> Table:
    gates = measured.as_json()["gates"]
    table = Table("measured", "relative difference", "gate", box=None, pad_edge=False)
    for precision in GATES:
        table.add_row(f"outputs in {precision}", f"{getattr(measured, precision):.2e}", f"{gates[precision]:.2e}")
    table.add_row("rows of tables", f"{measured.tables:.2e}", f"{GATES['float64']:.2e}")
    for layer, drift in zip(plan.source.layer_names(), measured.drift, strict=False):
        table.add_row(f"residual stream after layer {layer}", f"{drift:.2e}", "")
    return table


def _symmetry(measured: Verification) -> list[str]:
    return [
        f"symmetry     {space}: gradients of copies differ by {measure:.2e}"
        + ("" if measure > 1e-6 else " - copies will stay copies")
        for space, measure in measured.symmetry.items()
    ]


def _remarks(measured: Verification, comparison: Comparison) -> list[str]:
    lines = [f"{side:<12} {line}" for side, line in comparison.remarks]
    if comparison.rounding:
        lines.append("stored       in less than float32: the rounding is part of the difference")
    if measured.stored is not None:
        lines.append(
            f"stored       in less than float32: rounding makes the difference {measured.stored:.2e}; the verdict is "
            "that of the float32 weights, grown once more, of which every stored tensor is the rounding"
        )
    if measured.tables > GATES["float64"]:
        lines.append(f"tables       rows of '{measured.table}' differ; the probe need not look them up")
    if measured.tolerance:
        lines.append(
            f"tolerance    post-LN depth adds {measured.tolerance:.2e} to the gates: what vanishes with the "
            "norms' epsilon"
        )
    if measured.loss:
        before, after = measured.loss
        lines.append(f"loss         {before:.4f} -> {after:.4f} on the probe: new logits enter the softmax")
    return lines
