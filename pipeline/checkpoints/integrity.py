"""Whether a checkpoint is what was written: `lemon check DIR`.

Every byte is hashed against the manifest. Of a checkpoint that has none nobody can say that; then its files are held
against each other: they open, shapes and lengths agree, ranks and steps agree, and the config's model is the one they hold.
"""

import sys
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from pipeline import checkpoints
from pipeline.checkpoints import manifest
from pipeline.checkpoints.describe import amount, described, layout_facts, plural
from pipeline.checkpoints.layouts import huggingface, zero_format
from pipeline.checkpoints.state import State
from pipeline.errors import UserError
from pipeline.records.run_folder import read_json


def check(path: Path, workers: int = 1) -> str:
    """What was found, in one line. Raises UserError that names the first file which is damaged, missing or not listed."""
    folder = path if (path / manifest.NAME).exists() else checkpoints.locate(path)
    if not (folder / manifest.NAME).exists():
        require_structure(folder)
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        return f"check: {plural(len(sizes), 'file')}, {amount(sum(sizes))}, no manifest: structure only ({folder})"
    held = manifest.read(folder)["files"]
    if strangers := sorted(file for file in _files(folder) if file not in held):
        raise UserError(
            f"{folder / strangers[0]}: lies in the checkpoint and not in its manifest; move it elsewhere, readers might take it for a part"
        )
    total = sum(file["size"] for file in held.values())
    with _bar() as bar:
        task = bar.add_task("", total=total)
        manifest.verify(folder, workers, lambda size: bar.advance(task, size))
    return f"check: {plural(len(held), 'file')}, {amount(total)}, all as written ({folder})"


def _files(folder: Path) -> list[str]:
    """Whatever lies below `folder` but for its manifest, dead links too."""
    found = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [name for name in found if name != manifest.NAME]


def _bar() -> Progress:
    return Progress(
        TextColumn("hashing"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def require_structure(folder: Path) -> None:
    """Raises UserError for what files without a manifest say against each other, and for any that does not open."""
    for path in sorted(folder.rglob("*.pt")):
        zero_format.open_file(path)
    state = checkpoints.raw(folder)
    require_agreement(folder, state)
    if checkpoints.detect_layout(folder) == "huggingface":
        _require_index(folder, state)
    elif layout_facts(folder).get("zero_stage") == 3:
        _require_ranks(folder, layout_facts(folder)["world_size"])
    if described(folder)["family"]:
        checkpoints.read(folder)


def require_agreement(folder: Path, state: State) -> None:
    """Groups, slots and tensors speak of the same parameters, in the same shapes, and every one can be opened. Raises UserError."""
    counted = Counter(name for group in state.groups for name in group.names)
    if twice := [name for name, count in counted.items() if count > 1]:
        raise UserError(f"{folder}: '{twice[0]}' is in two optimizer groups; the files do not belong together")
    if unheld := [name for name in counted if name not in state.tensors]:
        raise UserError(
            f"{folder}: an optimizer group has '{unheld[0]}', of which there are no weights; a file is missing"
        )
    if counted and (left := [name for name in state.tensors if name not in counted and name not in state.frozen]):
        raise UserError(
            f"{folder}: '{left[0]}' is in no optimizer group and not frozen; the files do not belong together"
        )
    for slot, entries in state.slots.items():
        if entries and (missing := [name for name in counted if name not in entries]):
            raise UserError(f"{folder}: {slot} of '{missing[0]}' is missing; a file is missing")
    kinds = {"weights": {**state.tensors, **state.buffers}, **state.slots}
    for kind, entries in kinds.items():
        for name, entry in entries.items():
            wanted = state.tensors[name].shape if kind in state.slots else entry.shape
            if entry.shape != wanted:
                raise UserError(
                    f"{folder}: {kind} of '{name}' has shape {entry.shape}, its weights {wanted}; the files do not belong together"
                )
            entry.part(0, 1)


def _require_index(folder: Path, state: State) -> None:
    """The index of a sharded folder lists what its shards hold."""
    for index, alone in ((huggingface.INDEX, huggingface.WHOLE), (huggingface.PICKLED_INDEX, huggingface.PICKLED)):
        if (folder / index).exists():
            if odd := sorted(set(read_json(folder / index)["weight_map"]) ^ set(state.tensors)):
                where = (
                    "is in none of the files" if odd[0] not in state.tensors else "is in a file and not in the index"
                )
                raise UserError(f"{folder / index}: '{odd[0]}' {where}; copy the folder again")
        if (folder / index).exists() or (folder / alone).exists():
            return


def _require_ranks(folder: Path, world: int) -> None:
    """Stage 3 keeps a file of shapes and counters for every rank; readers look into the first."""
    first = zero_format.open_file(folder / zero_format.model_file(3))
    for rank in range(1, world):
        path = folder / zero_format.model_file(3, rank)
        held = zero_format.open_file(path)
        for key in ("dp_world_size", "global_steps", "param_shapes"):
            if held.get(key) != first.get(key):
                raise UserError(f"{path}: its {key} is not that of rank 0; files of two checkpoints are mixed")
