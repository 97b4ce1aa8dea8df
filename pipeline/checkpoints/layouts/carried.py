"""What DeepSpeed's files hold beside the model and the optimizer: the schedule of learning rates, counters, the loss
scale, the script's own client state. It is carried as it is, or named as left behind.

Objects that are no plain values cannot be carried, for they would have to be made by their own code."""

import copy
from collections import OrderedDict
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from pipeline.checkpoints.layouts.deepspeed_pickles import FragmentAddress, LossScaler, Opaque, loss_scaler
from pipeline.checkpoints.layouts.zero_files import TagFiles
from pipeline.checkpoints.layouts.zero_format import model_file, open_file
from pipeline.checkpoints.serialization.torch_archive import TorchArchive
from pipeline.errors import UserError

Tree = dict[str, Any]
OF_THE_MODEL = frozenset(
    {
        *("module", "buffer_names", "param_shapes", "frozen_param_shapes", "frozen_param_fragments", "shared_params"),
        *("optimizer", "global_steps"),
        *("dp_world_size", "mp_world_size", "checkpoint_parallel_dimensions"),
    }
)
"""Keys of a model_states file that every writer makes anew."""
OF_THE_OPTIMIZER = frozenset(
    {
        *("base_optimizer_state", "single_partition_of_fp32_groups", "group_paddings", "param_alignment_paddings"),
        *("partition_count", "zero_stage", "param_slice_mappings", "ds_version"),
        *("optimizer_state_dict", "fp32_flat_groups", "fp32_groups"),
    }
)
"""The same of an optimizer file's `optimizer_state_dict`."""


def of_model_states(folder: Path, files: TagFiles, own: Collection[str] = ()) -> tuple[Tree, list[str]]:
    """The keys to carry, and what is left behind, in words. own: further keys that are no script's."""
    kept, lost = carried(files.model, OF_THE_MODEL.union(own))
    for rank in range(1, len(files.optimizers)) if files.stage_3 else ():
        other, _ = carried(open_file(folder / model_file(3, rank), opaque=True), OF_THE_MODEL.union(own))
        if odd := [key for key in {**kept, **other} if not same(kept.get(key), other.get(key))]:
            lost.append(f"rank {rank}'s own {', '.join(map(repr, odd))} is left behind: rank 0's goes to every rank")
    return kept, lost


def carried(content: Tree, anew: frozenset[str]) -> tuple[Tree, list[str]]:
    """The entries of `content` but for the keys that are made `anew`, and in words those that cannot be carried."""
    lost: list[str] = []
    kept = _plain({key: value for key, value in content.items() if key not in anew}, "", lost)
    return kept, lost


def _plain(content: Tree, place: str, lost: list[str]) -> Tree:
    """`content` without entries that hold what cannot be carried; they are added to `lost`."""
    kept = copy.copy(content)
    for key, value in content.items():
        if what := _foreign(key):
            del kept[key]
            lost.append(f"'{place}{what}' is called by {what}, which is not opened, and is left behind")
        elif isinstance(value, dict) and not _opaque_dict(value):
            kept[key] = _plain(value, f"{place}{key}.", lost)
        elif what := _foreign(value):
            del kept[key]
            lost.append(f"'{place}{key}' holds {what}, which is not opened, and is left behind")
    return kept


def _opaque_dict(value: object) -> str | None:
    """The class that an OrderedDict stands for, if it does."""
    parts = vars(value).values() if isinstance(value, OrderedDict) else ()
    return next((part.name for part in parts if isinstance(part, Opaque)), None)


def _foreign(value: object) -> str | None:
    """What of `value` cannot be carried, in words."""
    if isinstance(value, Opaque) or (isinstance(value, type) and issubclass(value, Opaque)):
        return value.name
    if name := _opaque_dict(value):
        return name
    if isinstance(value, Tensor):
        plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        return None if plain else f"a tensor of layout {value.layout}"
    if isinstance(value, FragmentAddress):
        return "an object of DeepSpeed"
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    if isinstance(parts, list | tuple | set | frozenset):
        return next((what for part in parts if (what := _foreign(part))), None)
    return None


def require_no_loss_scale(scaling: Tree, where: str, way_out: str) -> None:
    """Raises UserError for a loss scale that is followed, or is not 1. where: the checkpoint that has no place for it,
    in words."""
    scaler = scaling.get("loss_scaler")
    scale = getattr(scaler, "cur_scale", 1)
    if scale != 1 or getattr(scaler, "dynamic", False):
        raise UserError(f"its loss scale ({scale:g}) has no place in a checkpoint {where}; {way_out}")


def stored(value: Any, archive: TorchArchive | None = None) -> Any:
    """A carried value as it is written: DeepSpeed's own objects are its own, and tensors are streamed into the
    archive; without one they are copied."""
    if isinstance(value, LossScaler):
        return loss_scaler(value)
    if isinstance(value, Tensor):
        return _as_it_was(archive.value(value.detach()) if archive else value.detach().clone(), value, archive)
    if isinstance(value, dict):
        entries = copy.copy(value)
        for key in value:
            entries[key] = stored(value[key], archive)
        return entries
    if type(value) in (list, tuple):
        return type(value)(stored(part, archive) for part in value)
    return value


def _as_it_was(copied: Tensor, value: Tensor, archive: TorchArchive | None) -> Tensor:
    """A copy that is a parameter, or asks for gradients, where the value does."""
    if isinstance(value, Parameter):
        parameter = Parameter(copied, value.requires_grad)
        return archive.instead(copied, parameter) if archive else parameter
    return copied.requires_grad_(value.requires_grad)


def same(one: object, other: object) -> bool:
    """Whether two carried values are equal: of one type, tensors bit for bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and torch.equal(_bits(one), _bits(other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, LossScaler) and isinstance(other, LossScaler):
        return same(vars(one), vars(other))
    return one == other or (one != one and other != other)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
