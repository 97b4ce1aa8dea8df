"""Whether a checkpoint is what was written: `lemon check DIR`.

Every byte is hashed against the manifest. Of a checkpoint that has none nobody can say that; then its files are held
against each other: they open, shapes and lengths agree, ranks and steps agree, and the config's model is the one they
hold."""

import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipeline import checkpoints
from pipeline.checkpoints import manifest
from pipeline.checkpoints.describe import plural
from pipeline.checkpoints.layouts import require_layout
from pipeline.checkpoints.layouts.zero_format import open_file
from pipeline.checkpoints.serialization.amounts import amount
from pipeline.checkpoints.serialization.progress import ByteProgress
from pipeline.checkpoints.state import State
from pipeline.errors import UserError
from pipeline.records.file_hashes import TITLES, FileRecord

logger = logging.getLogger(__name__)


def check(path: Path, workers: int = 1) -> str:
    """What was found, in one line. Raises UserError that names the first file which is damaged, missing or not
    listed."""
    folder = path if (path / manifest.NAME).exists() else checkpoints.locate(path)
    if not (folder / manifest.NAME).exists():
        for line in require_structure(folder):
            logger.warning(f"check: {line}")
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
        return f"check: {plural(len(sizes), 'file')}, {amount(sum(sizes))}, no manifest: structure only ({folder})"
    files = manifest.read(folder).files
    if strangers := sorted(name for name in _files(folder) if name not in files):
        raise UserError(
            f"{folder / strangers[0]}: lies in the checkpoint and not in its manifest; "
            "move it elsewhere, readers might take it for a part"
        )
    total = sum(file.size for file in files.values())
    with ByteProgress("hashing", total) as bar:
        manifest.verify(folder, workers, bar.advance)
    return f"check: {plural(len(files), 'file')}, {amount(total)}, all as written{_sealed_by(files)} ({folder})"


def _sealed_by(files: Mapping[str, FileRecord]) -> str:
    """By what, in words."""
    titles = sorted({TITLES[file.algorithm] for file in files.values()})
    return f" by {' and '.join(titles)}" if titles else ""


def _files(folder: Path) -> list[str]:
    """Whatever lies below `folder` but for its manifest, dead links too."""
    paths = (str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return [name for name in paths if name != manifest.NAME]


def require_structure(folder: Path) -> list[str]:
    """Raises UserError for what files without a manifest say against each other, and for any that does not open. Where
    a config describes a supported model, they are compared with that too (which takes importing the models). Returns
    what else lies there and is not read, in words."""
    for path in sorted(folder.rglob("*.pt")):
        open_file(path, opaque=path.name.endswith("model_states.pt"))
    state = checkpoints.raw(folder)
    require_agreement(folder, state)
    require_layout(folder).require_structure(folder, state)
    if checkpoints.holds_known_model(folder):
        checkpoints.read(folder)
    return [line for line in (*state.unread, checkpoints.Sidecars.of(folder).remark) if line]


def require_agreement(folder: Path, state: State) -> None:
    """Groups, slots and tensors speak of the same parameters, in the same shapes, and every one can be opened. Raises
    UserError."""
    counted = Counter(name for group in state.groups for name in group.names)
    if twice := [name for name, count in counted.items() if count > 1]:
        raise UserError(f"{folder}: '{twice[0]}' is in two optimizer groups; the files do not belong together")
    if counted and (left := [name for name in state.tensors if name not in counted and name not in state.frozen]):
        raise UserError(
            f"{folder}: '{left[0]}' is in no optimizer group and not frozen; the files do not belong together"
        )
    for group in state.groups:
        wanted = ((slot, name) for slot in state.slots_of(group) for name in group.names)
        if missing := [(slot, name) for slot, name in wanted if name not in state.slots[slot]]:
            raise UserError(f"{folder}: {missing[0][0]} of '{missing[0][1]}' is missing; a file is missing")
    _require_shapes(folder, state)


def _require_shapes(folder: Path, state: State) -> None:
    kinds = {"weights": {**state.tensors, **state.buffers}, **state.slots}
    for kind, tensors in kinds.items():
        for name, tensor in tensors.items():
            shape = state.tensors[name].shape if kind in state.slots else tensor.shape
            if tensor.shape != shape:
                raise UserError(
                    f"{folder}: {kind} of '{name}' has shape {tensor.shape}, its weights {shape}; "
                    "the files do not belong together"
                )
            tensor.read(0, 1)
