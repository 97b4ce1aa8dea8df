"""Hugging Face folders: config.json and safetensors, whole or sharded; `pytorch_model.bin` safely.

Writing streams: the header first (its offsets follow from the shapes), then one tensor after the other.
"""

import json
import math
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.checkpoints.layouts.zero_format import open_file
from pipeline.checkpoints.serialization.byte_stream import Chunks, File, content, whole
from pipeline.checkpoints.state import LazyTensor, State
from pipeline.errors import UserError
from pipeline.records.run_folder import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
FILES = (WHOLE, INDEX, PICKLED, PICKLED_INDEX)
DTYPES = {"float32": (torch.float32, "F32"), "bfloat16": (torch.bfloat16, "BF16"), "float16": (torch.float16, "F16")}


def read(folder: Path) -> State:
    """The weights of a Hugging Face folder. Raises UserError for damaged files."""
    for index, single, entries in ((INDEX, WHOLE, _entries), (PICKLED_INDEX, PICKLED, _pickled)):
        if (folder / index).exists():
            files = _shards(folder / index)
        elif (folder / single).exists():
            files = [single]
        else:
            continue
        return State({name: entry for file in files for name, entry in entries(folder / file).items()})
    raise UserError(f"{folder}: holds none of {', '.join(FILES)}")


def _shards(index: Path) -> list[str]:
    held = read_json(index).get("weight_map")
    if not isinstance(held, dict) or not held:
        raise UserError(f"{index}: names no files in 'weight_map'; copy it again")
    if outside := [name for name in held.values() if Path(str(name)).name != name]:
        raise UserError(f"{index}: '{outside[0]}' is not a file of this folder")
    return sorted(set(held.values()))


def _entries(path: Path) -> dict[str, LazyTensor]:
    """The file stays mapped while any of its entries lives: parts of a tensor cost no more than themselves."""
    try:
        file = safe_open(path, "pt")
        return {
            name: LazyTensor(tuple(file.get_slice(name).get_shape()), partial(file.get_tensor, name))
            for name in file.keys()
        }
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from error


def _pickled(path: Path) -> dict[str, LazyTensor]:
    held = open_file(path)
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise UserError(f"{path}: holds something else than named tensors; copy it again")
    return {name: LazyTensor(tuple(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in held.items()}


def files(state: State, dtype: str = "float32") -> list[File]:
    """The weights (published names) as one safetensors file in `dtype`. Raises UserError, when it is written, for a number
    that `dtype` cannot hold."""
    stored, code = DTYPES[dtype]
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, entry in state.tensors.items():
        size = math.prod(entry.shape) * stored.itemsize
        header[name] = {"dtype": code, "shape": list(entry.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [File(WHOLE, offset + len(text), partial(_chunks, text, state, stored))]


def _chunks(header: bytes, state: State, stored: torch.dtype) -> Chunks:
    yield len(header).to_bytes(8, "little") + header
    for name, entry in state.tensors.items():
        yield from content(whole(entry), stored, partial(_require_room, name))


def _require_room(name: str, before: Tensor, after: Tensor) -> None:
    if before.dtype != after.dtype and not torch.isfinite(after).all() and torch.isfinite(before).all():
        dtype, largest = str(after.dtype).removeprefix("torch."), before.abs().max().item()
        raise UserError(
            f"'{name}' does not fit into {dtype} (largest number {largest:.3g}); choose float32 or bfloat16"
        )
