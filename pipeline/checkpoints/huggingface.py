"""Hugging Face folders: config.json and safetensors, whole or sharded; `pytorch_model.bin` safely."""

from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.checkpoints.zero_files import open_file
from pipeline.errors import UserError
from pipeline.folders import read_json
from pipeline.state import Entry, State

WHOLE, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def read(folder: Path) -> State:
    """The weights of a Hugging Face folder, in published names. Raises UserError for damaged files."""
    if (folder / INDEX).exists():
        files = sorted(set(read_json(folder / INDEX)["weight_map"].values()))
    elif (folder / WHOLE).exists():
        files = [WHOLE]
    else:
        return State({name: Entry(tuple(t.shape), lambda t=t: t) for name, t in open_file(folder / PICKLED).items()})
    return State({name: entry for file in files for name, entry in _entries(folder / file).items()})


def _entries(path: Path) -> dict[str, Entry]:
    try:
        with safe_open(path, "pt") as file:
            return {name: Entry(tuple(file.get_slice(name).get_shape()), partial(_open, path, name)) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from error


def _open(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def write(state: State, folder: Path) -> None:
    """Write the weights (published names) as one safetensors file; config.json is written by the caller."""
    save_file({name: entry.open().contiguous() for name, entry in state.tensors.items()}, folder / WHOLE, metadata={"format": "pt"})
