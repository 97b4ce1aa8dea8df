"""Verifying two checkpoints against each other, whoever made them: `lemon verify SMALL LARGE`."""

from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, manifest
from pipeline.checkpoints.state import State
from pipeline.errors import UserError
from pipeline.expansion import expand
from pipeline.growth import conditions
from pipeline.growth.execute import METHODS
from pipeline.growth.method import ExpansionOptions
from pipeline.growth.verification.equivalence import GATES, Verification, verify
from pipeline.records.run_folder import read_json

PLAN = "plan.json"
SLACK = 2**-20
"""How far the numbers of a regrown float32 tensor may be off, over its largest: other processors add in another order. 5e-8 was
seen between vector instructions and none."""


def compare(small: Path, large: Path) -> tuple[Verification, ExpansionOptions, bool]:
    """Measure how far `large` computes the function of `small`. How it was grown is read from its plan.json; without one
    it is taken for LEMON's. Of a `large` that has a plan and is stored in less than float32, the verdict is that of the float32
    weights, grown once more. Raises UserError for models of which one is no growth of the other, and for stored weights
    that are no rounding of the grown ones. Returns the measurements, how it was grown, and whether a rounding is part of
    the difference."""
    places = checkpoints.locate(small), checkpoints.locate(large)
    (before, source), (after, target) = (checkpoints.read(place) for place in places)
    if reasons := conditions.impossible(models.architecture_of(source), models.architecture_of(target)):
        raise UserError(f"{large} is no growth of {small}: {'; '.join(reasons)}")
    options, read, stored = recorded(places[1]), partial(expand.weight, before), partial(expand.weight, after)
    rounded = next(iter(after.tensors.values())).open().dtype.itemsize < torch.float32.itemsize
    if not (rounded and (places[1] / PLAN).exists()):
        return verify(source, read, target, stored, options), options, rounded
    exact = _unrounded(places, target, after, options)
    return verify(source, read, target, partial(expand.weight, exact), options, stored=stored), options, False


def _unrounded(places: tuple[Path, Path], target: PretrainedConfig, stored: State, options: ExpansionOptions) -> State:
    """The float32 weights that `stored` was rounded from: grown once more, each when it is opened. Raises UserError when
    any stored tensor is no rounding of them, for the verdict would be that of other weights."""
    exact = expand.grown(expand.plan_expansion(places[0], target, options, CheckpointLayout("huggingface")))
    for name, entry in stored.tensors.items():
        held = entry.open()
        if apart := _apart(exact.tensors[name].open(), held):
            dtype = str(held.dtype).removeprefix("torch.")
            raise UserError(
                f"{places[1]}: '{name}' is not what its {PLAN} makes of {places[0]}, rounded to {dtype} ({apart} of {held.numel()} "
                f"numbers differ); name the source it grew from, or remove {PLAN} and {manifest.NAME} to measure what is stored by LEMON's rules"
            )
    return exact


def _apart(grown: Tensor, held: Tensor) -> int:
    """How many of the numbers held are no rounding of the grown ones, give or take SLACK: rounding grow_optimizer_state the order."""
    slack = SLACK * grown.abs().max()
    within = (held >= (grown - slack).to(held.dtype)) & (held <= (grown + slack).to(held.dtype))
    return int((~within).sum())


def recorded(folder: Path) -> ExpansionOptions:
    """The options in a checkpoint's plan.json. Raises UserError for a plan that is none."""
    path = folder / PLAN
    if not path.exists():
        return ExpansionOptions()
    try:
        options = ExpansionOptions(**read_json(path)["options"])
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not a plan of ours ({error}); remove it and {manifest.NAME} to compare by LEMON's rules"
        ) from error
    if options.method not in METHODS:
        raise UserError(
            f"{path}: unknown method '{options.method}'; remove it and {manifest.NAME} to compare by LEMON's rules"
        )
    return options


def show(found: Verification, options: ExpansionOptions, rounded: bool, console: Console) -> None:
    """Print the measurements and the verdict."""
    gates = found.as_json()["gates"]
    sheet = Table("measured", "relative difference", "gate", box=None, pad_edge=False)
    for precision in GATES:
        sheet.add_row(f"outputs in {precision}", f"{getattr(found, precision):.2e}", f"{gates[precision]:.2e}")
    for layer, drift in enumerate(found.drift):
        sheet.add_row(f"stream behind layer {layer}", f"{drift:.2e}", "")
    console.print(sheet)
    for space, measure in found.symmetry.items():
        console.print(
            f"symmetry     {space}: gradients of copies differ by {measure:.2e}{'' if measure > 1e-6 else ' - copies will stay copies'}",
            highlight=False,
        )
    if rounded:
        console.print("stored       in less than float32: the rounding is part of the difference", highlight=False)
    if found.stored is not None:
        console.print(
            f"stored       in less than float32: rounding makes the difference {found.stored:.2e}; the verdict is that of the float32 weights, "
            f"grown once more, of which every stored tensor is the rounding",
            highlight=False,
        )
    if found.tolerance:
        console.print(
            f"tolerance    post-LN depth adds {found.tolerance:.2e} to the gates: what vanishes with the norms' epsilon",
            highlight=False,
        )
    if found.loss:
        console.print(
            f"loss         {found.loss[0]:.4f} -> {found.loss[1]:.4f} on the probe: new logits enter the softmax",
            highlight=False,
        )
    verdict = "[green]lossless[/green]" if found.lossless else "[red]lossy[/red]"
    console.print(f"verdict      {verdict} (method '{options.method}', {found.samples} samples)", highlight=False)
