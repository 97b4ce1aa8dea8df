"""What a model_states file holds beside the trained parameters: tied names, buffers, and parameters that no optimizer
group has. Each keeps its own dtype."""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.checkpoints.layouts.zero_format import FlatPartition, model_file, open_file, require_numbers
from pipeline.checkpoints.tensors import InMemoryTensor, LazyTensor, ShardedTensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Beside:
    """aliases: tied name -> owner. lost: what is no tensor, in words."""

    aliases: dict[str, str]
    buffers: dict[str, LazyTensor]
    frozen: dict[str, LazyTensor]
    lost: tuple[str, ...]


def beside(folder: Path, model: dict[str, Any], trained: Collection[str], cut: int = 0) -> Beside:
    """All that belongs to no optimizer group. trained: the names that do. cut: the number of ranks over which stage 3
    has cut every parameter; 0 where parameters are whole."""
    module, buffers = model["module"], tuple(model.get("buffer_names") or ())
    cut_frozen = _cut_frozen(folder, model, cut) if cut else {}
    aliases = {**tied(module, (*buffers, *trained)), **(model.get("shared_params") or {})}
    lone = _without_owner(aliases, {*trained, *buffers, *cut_frozen, *module})
    aliases = {alias: owner for alias, owner in aliases.items() if alias not in lone}
    known = {*trained, *buffers, *aliases, *cut_frozen}
    others = {name: value for name, value in module.items() if name not in known}
    # ZeRO-1 notes no frozen parameters: they are in the module and in no group
    held = {name: value for name, value in others.items() if isinstance(value, Tensor) and not (cut and _gone(value))}
    lost = [f"'{name}' of the module holds no tensor and is left behind" for name in others if name not in held]
    lost += [
        f"'{owner}', to which '{alias}' is tied, is not in the files, which were saved without frozen parameters; load "
        "the result with load_module_strict=False"
        for alias, owner in lone.items()
    ]
    for name in (*buffers, *held):
        require_numbers(folder, f"'{name}'", module[name])
    return Beside(aliases, _whole(module, buffers), cut_frozen | _whole(held, held), tuple(lost))


def _without_owner(aliases: dict[str, Any], held: Collection[str]) -> dict[str, str]:
    """Tied names of frozen parameters that a script has left out (exclude_frozen_parameters), and those."""
    return {alias: owner for alias, owner in aliases.items() if isinstance(owner, str) and owner not in held}


def _gone(value: Tensor) -> bool:
    """Stage 3 leaves an empty tensor where a parameter was."""
    return value.numel() == 0


def _whole(module: dict[str, Tensor], names: Iterable[str]) -> dict[str, LazyTensor]:
    return {name: InMemoryTensor(module[name]) for name in names}


def _cut_frozen(folder: Path, model: dict[str, Any], world: int) -> dict[str, LazyTensor]:
    """Frozen parameters of stage 3: a padded slice on every rank."""
    shapes: dict[str, Shape] = {name: tuple(shape) for name, shape in (model.get("frozen_param_shapes") or {}).items()}
    if not shapes:
        return {}
    files = [open_file(folder / model_file(3, rank), opaque=True) for rank in range(world)]
    parts = [file["frozen_param_fragments"] for file in files]
    partitions = {name: FlatPartition(3, world, (math.prod(shape),)) for name, shape in shapes.items()}
    return {
        name: ShardedTensor(shape, [part[name] for part in parts], partitions[name].slices()[0])
        for name, shape in shapes.items()
    }


def tied(module: dict[str, Any], others: Collection[str] = ()) -> dict[str, str]:
    """Names that share their numbers with an earlier one, which owns them; those of `others` are no tied names."""
    owners: dict[tuple[int, Shape], str] = {}
    aliases = {}
    for name in sorted(module, key=lambda name: name not in others):
        tensor = module[name]
        if isinstance(tensor, Tensor) and tensor.numel():
            owner = owners.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
            if owner != name and name not in others:
                aliases[name] = owner
    return aliases
