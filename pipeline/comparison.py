"""Verifying two checkpoints against each other, whoever made them: `lemon verify SMALL LARGE`."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table as Sheet
from torch import Tensor

from pipeline import checkpoints, models
from pipeline.errors import UserError
from pipeline.folders import read_json
from pipeline.growth import conditions
from pipeline.growth.engine import METHODS
from pipeline.growth.method import Options
from pipeline.growth.verify import GATES, Pair, Verification, verify
from pipeline.state import State


def compare(small: Path, large: Path) -> tuple[Verification, Options]:
    """Measure how far `large` computes the function of `small`. How it was grown is read from its plan.json; without one
    it is taken for LEMON's. Raises UserError for models of which one is no growth of the other."""
    places = checkpoints.locate(small), checkpoints.locate(large)
    (before, source), (after, target) = (checkpoints.read(place) for place in places)
    if reasons := conditions.impossible(models.table(source), models.table(target)):
        raise UserError(f"{large} is no growth of {small}: {'; '.join(reasons)}")
    options = recorded(places[1])
    pair = Pair(source, target, options)
    moved = pair.tables[1].post_norm and any(layer.new for layer in pair.layers)
    found = verify(source, partial(_open, before), target, partial(_open, after), options, moved=moved)
    stored = next(iter(after.tensors.values())).open().dtype
    return (found if stored == torch.float32 else replace(found, stored=found.float64)), options


def recorded(folder: Path) -> Options:
    """The options in a checkpoint's plan.json. Raises UserError for a plan that is none."""
    path = folder / "plan.json"
    if not path.exists():
        return Options()
    try:
        options = Options(**read_json(path)["options"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: not a plan of ours ({error}); remove it to compare by LEMON's rules") from error
    if options.method not in METHODS:
        raise UserError(f"{path}: unknown method '{options.method}'; remove it to compare by LEMON's rules")
    return options


def _open(state: State, name: str) -> Tensor:
    return state.tensors[name].open().float()


def show(found: Verification, options: Options, console: Console) -> None:
    """Print the measurements and the verdict."""
    gates = found.as_json()["gates"]
    sheet = Sheet("measured", "relative difference", "gate", box=None, pad_edge=False)
    for precision in GATES:
        sheet.add_row(f"outputs in {precision}", f"{getattr(found, precision):.2e}", f"{gates[precision]:.2e}")
    for layer, drift in enumerate(found.drift):
        sheet.add_row(f"stream behind layer {layer}", f"{drift:.2e}", "")
    console.print(sheet)
    for space, measure in found.symmetry.items():
        console.print(f"symmetry     {space}: gradients of copies differ by {measure:.2e}{'' if measure > 1e-6 else ' - copies will stay copies'}", highlight=False)
    if found.stored is not None:
        console.print("stored       in half precision, whose rounding is part of the difference; its manifest has the verdict of the float32 weights", highlight=False)
    if found.tolerance:
        console.print(f"tolerance    post-LN depth adds {found.tolerance:.2e} to the gates: what vanishes with the norms' epsilon", highlight=False)
    if found.loss:
        console.print(f"loss         {found.loss[0]:.4f} -> {found.loss[1]:.4f} on the probe: new logits enter the softmax", highlight=False)
    verdict = "[green]lossless[/green]" if found.lossless else "[red]lossy[/red]"
    console.print(f"verdict      {verdict} (method '{options.method}', {found.samples} samples)", highlight=False)
