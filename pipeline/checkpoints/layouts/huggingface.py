"""Hugging Face folders: config.json and safetensors, whole or sharded; `pytorch_model.bin` safely.

Writing streams: the header first (its offsets follow from the shapes), then one tensor after the other.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.checkpoints.layouts.layout import Layout
from pipeline.checkpoints.layouts.zero_format import open_file
from pipeline.checkpoints.relative_paths import is_file_name
from pipeline.checkpoints.serialization.byte_stream import Chunks, OutputFile, tensor_bytes, whole
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import InMemoryTensor, LazyTensor, WholeTensor
from pipeline.errors import UserError
from pipeline.records.run_folder import POINTER, is_pointer, read_json

if TYPE_CHECKING:
    from pipeline.checkpoints.layouts import CheckpointLayout

logger = logging.getLogger(__name__)

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
FILES = (WHOLE, INDEX, PICKLED, PICKLED_INDEX)
"""Of those that a folder holds, the first counts alone, as in `from_pretrained` of transformers 5; one that the config
names in `transformers_weights` comes before them."""
CONFIG, NAMED = "config.json", "transformers_weights"
WRAPPED = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which scripts save a model beside its optimizer."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls them."""
MAX_SHARD_SIZE = 5 * 10**9
"""Bytes of the tensors in one file."""


class HuggingFace(Layout):
    """As `save_pretrained` writes."""

    name = "huggingface"
    title = "Hugging Face"
    keys = ("dtype",)
    holds_optimizer = False
    published_names = True

    def detect(self, folder: Path) -> bool:
        return weights_file(folder) is not None

    def read(self, folder: Path) -> State:
        return read(folder)

    def files(self, state: State, folder: Path, target: CheckpointLayout) -> list[OutputFile]:
        return files(state, target.dtype, target.max_shard_size)

    def bytes_on_disk(self, parameters: int, kept: int, target: CheckpointLayout) -> int:
        return DTYPES[target.dtype].itemsize * parameters

    def writers(self, parameters: int, target: CheckpointLayout, workers: int) -> int:
        shards = math.ceil(self.bytes_on_disk(parameters, 0, target) / target.max_shard_size)
        return max(1, min(workers, shards))

    def require_structure(self, folder: Path, state: State) -> None:
        """The index of a sharded folder lists what its shards hold."""
        index = weights_file(folder)
        if index is None or not is_index(index):
            return
        if odd := sorted(set(read_json(index)["weight_map"]) ^ set(state.tensors)):
            fault = "is in a file and not in the index" if odd[0] in state.tensors else "is in none of the files"
            raise UserError(f"{index}: '{odd[0]}' {fault}; copy the folder again")


class SafetensorsTensor(WholeTensor):
    """A tensor of a safetensors file, which stays mapped while any of its tensors lives: a part of a tensor costs no
    more than itself."""

    def __init__(self, file: Any, name: str):
        header = file.get_slice(name)
        super().__init__(header.get_shape())
        self._file, self._name, self._code = file, name, header.get_dtype()

    @property
    def dtype(self) -> torch.dtype:
        """As the header says, for the types that are written."""
        return next((dtype for dtype, code in CODES.items() if code == self._code), None) or super().dtype

    def load(self) -> Tensor:
        tensor: Tensor = self._file.get_tensor(self._name)
        return tensor


def weights_file(folder: Path) -> Path | None:
    """The file, or the index of files, that holds the weights of a folder; None where there is none."""
    named = _named_by_config(folder)
    return next((folder / name for name in ([named] if named else FILES) if (folder / name).exists()), None)


def _named_by_config(folder: Path) -> str | None:
    """The file of this folder that its config names, if it names one. Raises UserError, as transformers does, for a
    name that leads elsewhere."""
    try:
        named = read_json(folder / CONFIG).get(NAMED)
    except UserError:  # whoever reads the config says it
        return None
    if named is not None and not (isinstance(named, str) and is_file_name(named)):
        raise UserError(f"{folder / CONFIG}: {NAMED} {named!r} is no file of this folder; remove the key")
    return named


def is_index(file: Path) -> bool:
    return file.name.endswith(".index.json")


def shards(file: Path) -> list[Path]:
    """The files of tensors that a weights file is or lists, in order of their names. Raises UserError."""
    return [file.with_name(name) for name in _shard_names(file)] if is_index(file) else [file]


def read(folder: Path) -> State:
    """The weights of a Hugging Face folder: every tensor of the files that count, be it in their index or not. Raises
    UserError for damaged files, and for a tensor that two of them hold."""
    file = weights_file(folder)
    if file is None:
        raise UserError(f"{folder}: holds none of {', '.join(FILES)}")
    tensors: dict[str, LazyTensor] = {}
    unwrapped = ""
    left: list[str] = []
    for shard in shards(file):
        held, key, others = (_safetensors(shard), "", []) if shard.suffix == ".safetensors" else _pickled(shard)
        left += others
        unwrapped = f"the key '{key}' of {shard.name}" if key else unwrapped
        if twice := sorted(set(held) & set(tensors)):
            raise UserError(f"{shard}: '{twice[0]}' is in another file of {file.name} too; copy the folder again")
        tensors |= held
    return State(tensors, unwrapped=unwrapped, unread=tuple(left))


def can_be_mapped(folder: Path) -> bool:
    """Whether tensors of the folder's files can be views of them: pickles of old versions of torch are no archives."""
    file = weights_file(folder)
    return file is not None and all(s.suffix == ".safetensors" or is_zipfile(s) for s in shards(file))


def _shard_names(index: Path) -> list[str]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index}: names no files in 'weight_map'; copy it again")
    if outside := [name for name in names.values() if Path(str(name)).name != name]:
        raise UserError(f"{index}: '{outside[0]}' is not a file of this folder")
    return sorted(set(names.values()))


def _safetensors(path: Path) -> dict[str, LazyTensor]:
    try:
        _require_content(path)
        file = safe_open(path, "pt")
        names = list(file.keys())
        if odd := [name for name in names if file.get_slice(name).get_dtype().startswith("C")]:
            raise UserError(f"{path}: '{odd[0]}' holds complex numbers, which no supported model has")
        return {name: SafetensorsTensor(file, name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); copy it again") from error


def _require_content(path: Path) -> None:
    """Raises UserError for a pointer in the place of a file, and OSError that says why one cannot be opened (where
    safetensors says that it is not there)."""
    if is_pointer(path):
        raise UserError(POINTER.format(path))


def _pickled(path: Path) -> tuple[dict[str, LazyTensor], str, list[str]]:
    """The named tensors of a file, the key under which they lie in it, if any, and in words what lies beside."""
    if path.exists():
        _require_content(path)
    content, key, left = _unpacked(path, open_file(path))
    if not isinstance(content, dict) or not all(map(_is_named_tensor, content.items())):
        raise UserError(f"{path}: holds something else than named tensors of real numbers; copy it again")
    return {name: InMemoryTensor(tensor) for name, tensor in content.items()}, key, left


def _unpacked(path: Path, content: object) -> tuple[object, str, list[str]]:
    """The named tensors that a training script has put under one key, which is said, and in words what lies beside."""
    if not isinstance(content, dict) or not (
        key := next((key for key in WRAPPED if _holds_tensors(content, key)), None)
    ):
        return content, "", []
    logger.warning(f"{path}: read is what it holds as '{key}'")
    others = ", ".join(repr(other) for other in content if other != key)
    left = [f"what {path.name} holds beside '{key}' is left behind: {others}"] if others else []
    return content[key], key, left


def _holds_tensors(content: dict[Any, Any], key: str) -> bool:
    held = content.get(key)
    return isinstance(held, dict) and bool(held) and all(map(_is_named_tensor, held.items()))


def _is_named_tensor(entry: tuple[object, object]) -> bool:
    name, value = entry
    whole = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex()
    return isinstance(name, str) and whole


def files(state: State, dtype: str = "float32", max_shard_size: int = MAX_SHARD_SIZE) -> list[OutputFile]:
    """The weights (published names) in `dtype`, in safetensors files of at most `max_shard_size` bytes of tensors and
    an index, or in one file where they fit. Raises UserError, when it is written, for a number that `dtype` cannot
    hold."""
    stored = DTYPES[dtype]
    shards = _shards(state.tensors, stored.itemsize, max_shard_size)
    if len(shards) == 1:
        return [_file(WHOLE, shards[0], stored)]
    stem, names = WHOLE.removesuffix(".safetensors"), range(1, len(shards) + 1)
    named = {f"{stem}-{n:05d}-of-{len(shards):05d}.safetensors": shards[n - 1] for n in names}
    index = OutputFile.of(INDEX, _index(named, stored.itemsize))
    return [*(_file(name, shard, stored) for name, shard in named.items()), index]


def _shards(tensors: Mapping[str, LazyTensor], itemsize: int, limit: int) -> list[dict[str, LazyTensor]]:
    """Tensors in order, in as many as fit below `limit` bytes; one that is larger alone has its own, as transformers
    cuts them."""
    shards: list[dict[str, LazyTensor]] = []
    current: dict[str, LazyTensor] = {}
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel * itemsize
        if size > limit:
            shards.append({name: tensor})
            continue
        if filled + size > limit:
            shards.append(current)
            current, filled = {}, 0
        current[name] = tensor
        filled += size
    return [*shards, current] if current or not shards else shards


def _index(shards: Mapping[str, Mapping[str, LazyTensor]], itemsize: int) -> bytes:
    """Which file holds which tensor, with the totals that transformers 5 writes."""
    count = sum(tensor.numel for shard in shards.values() for tensor in shard.values())
    content = {
        "metadata": {"total_parameters": count, "total_size": count * itemsize},
        "weight_map": {name: file for file, shard in shards.items() for name in shard},
    }
    return (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


def _file(name: str, tensors: Mapping[str, LazyTensor], stored: torch.dtype) -> OutputFile:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, tensor in tensors.items():
        end = offset + tensor.numel * stored.itemsize
        header[key] = {"dtype": CODES[stored], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return OutputFile(name, offset + len(text), SafetensorsContent(text, tensors, stored))


@dataclass(frozen=True)
class SafetensorsContent:
    """The header behind its length, and the tensors' bytes."""

    header: bytes
    tensors: Mapping[str, LazyTensor]
    stored: torch.dtype

    def chunks(self) -> Chunks:
        yield len(self.header).to_bytes(8, "little") + self.header
        for name, tensor in self.tensors.items():
            yield from tensor_bytes(whole(tensor), self.stored, RangeCheck(name))


@dataclass(frozen=True)
class RangeCheck:
    """Raises UserError for a number of tensor `name` that the stored dtype cannot hold, whatever stands beside it."""

    name: str

    def __call__(self, before: Tensor, after: Tensor) -> None:
        if before.dtype == after.dtype or torch.isfinite(after).all():
            return
        lost = before[after.isinf() & before.isfinite()]
        if lost.numel():
            dtype, largest = str(after.dtype).removeprefix("torch."), lost.abs().max().item()
            raise UserError(
                f"'{self.name}' does not fit into {dtype} (largest number {largest:.3g}); choose float32 or bfloat16"
            )
