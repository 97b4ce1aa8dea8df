"""What DeepSpeed's files hold, by plain `torch.load`: two checkpoints of one layout, item by item."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tests.helpers.scripts.plain_everything import bits, spelled

Tree = dict
Place = tuple[object, ...]
Gap = tuple[Place, str]
"""The keys that lead to an item, and what each side holds."""
MISSING = object()


def contents(folder: Path, ordered: bool) -> dict[str, Tree]:
    """The trees of every file, flat tensors of the optimizer without what pads them. ordered: whether parameters must
    lie in one order; else they are put together."""
    found = {path.name: torch.load(path, weights_only=False) for path in sorted(folder.glob("*.pt"))}
    model = next(tree for tree in found.values() if "module" in tree)
    for name, tree in found.items():
        if name.endswith("optim_states.pt"):
            _unpad(tree["optimizer_state_dict"], name, found)
            tree["optimizer_state_dict"].pop("param_alignment_paddings", None)
            if tree.get("ds_config") == model["ds_config"]:
                tree.pop("ds_config")
        elif name.startswith("zero_pp_rank_") and not name.startswith("zero_pp_rank_0_"):
            tree.pop("shared_params")  # DeepSpeed notes them on the first rank
    return found if ordered else {**found, "parameters": _together(found, model)}


def _together(found: dict[str, Tree], model: Tree) -> Tree:
    """By name, the weights and the state of stages 1 and 2, which are taken out of the files."""
    trees = [tree["optimizer_state_dict"] for name, tree in found.items() if name.endswith("optim_states.pt")]
    weights = [tree.pop("single_partition_of_fp32_groups") for tree in trees]
    states = [tree["base_optimizer_state"].pop("state") for tree in trees]
    for tree in trees:
        tree.pop("param_slice_mappings", None)
    parameters: Tree = {}
    for number, shapes in enumerate(model.pop("param_shapes")):
        parts = [flat[number] for flat in weights]
        kept = [state.get(number, {}) for state in states]  # none of a rank whose numbers are still zeros
        begun = {key: value for state in kept for key, value in state.items()}
        flats = {"weights": torch.cat(parts)}
        for key in (key for key, value in begun.items() if value.dim()):
            pairs = zip(kept, parts, strict=True)
            flats[key] = torch.cat([state.get(key, torch.zeros_like(part)) for state, part in pairs])
        sizes = [math.prod(shape) for shape in shapes.values()]
        cut = {key: flat.split(sizes) for key, flat in flats.items()}
        shared = {key: value for key, value in begun.items() if not value.dim()}
        parameters |= {name: {**shared, **{key: cut[key][at] for key in cut}} for at, name in enumerate(shapes)}
    return parameters


def differences(one: Path, other: Path, ordered: bool = True) -> Iterator[Gap]:
    """Every place where two folders differ. What every writer makes anew and can be made from the rest is none:
    DeepSpeed's config in optimizer files where it is the one of the model_states file, paddings, and nothing."""
    yield from _differing((), contents(one, ordered), contents(other, ordered))


def _unpad(tree: Tree, name: str, files: dict[str, Tree]) -> None:
    rank = int(name.removeprefix("bf16_").split("_")[3])
    third = "fp32_flat_groups" in tree
    model = files[f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" if third else "mp_rank_00_model_states.pt"]
    world = model["dp_world_size"]
    sizes = [[math.prod(shape) for shape in shapes.values()] for shapes in model["param_shapes"]]
    weights = tree["fp32_flat_groups" if third else "single_partition_of_fp32_groups"]
    base = tree["optimizer_state_dict" if third else "base_optimizer_state"]
    for number, numbers in enumerate(sizes):
        kept = _real(numbers, rank, world, third)
        weights[number] = weights[number][[at for at in kept if at < weights[number].numel()]]
        for key, value in base["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.dim():
                base["state"][number][key] = value[kept]
    base["state"] = {number: state for number, state in base["state"].items() if _begun(state)}
    for key, shape in (model["frozen_param_shapes"] or {}).items() if third else ():
        held = model["frozen_param_fragments"]
        held[key] = held[key].flatten()[_real([math.prod(shape)], rank, world, third)]


def _real(sizes: list[int], rank: int, world: int, third: bool) -> list[int]:
    """Where a rank's flat tensor holds numbers of parameters."""
    if not third:
        flat = 2 * math.ceil(sum(sizes) / (2 * world))
        return list(range(max(0, min(flat, sum(sizes) - rank * flat))))
    kept, begin = [], 0
    for size in sizes:
        share = math.ceil(size / world)
        kept += range(begin, begin + max(0, min(share, size - rank * share)))
        begin += share
    return kept


def _begun(state: Tree) -> bool:
    """Whether it is not the zeros that an optimizer starts with, which it makes at its first step or before."""
    return any(bool(torch.as_tensor(value).any()) for value in state.values() if value is not None)


def _differing(place: Place, one: object, other: object) -> Iterator[Gap]:
    if _nothing(one) and _nothing(other):
        return
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {**one, **other}:
            if key not in one and _unscaled(key, other[key]):
                continue
            if (key in one and key in other) or not _nothing(one.get(key, other.get(key))):
                yield from _differing((*place, spelled(key)), one.get(key, MISSING), other.get(key, MISSING))
    elif type(one) is not type(other):
        yield place, f"{_short(one)} -> {_short(other)}"
    elif isinstance(one, list | tuple) and len(one) == len(other):
        for number, pair in enumerate(zip(one, other, strict=True)):
            yield from _differing((*place, str(number)), *pair)
    elif isinstance(one, Tensor):
        if one.layout != torch.strided or other.layout != torch.strided or bits(one) != bits(other):
            yield place, f"{_short(one)} -> {_short(other)}"
    elif hasattr(one, "__dict__") and not isinstance(one, type):
        yield from _differing((*place, type(one).__name__), vars(one), vars(other))
    elif one != other and not (one != one and other != other):
        yield place, f"{_short(one)} -> {_short(other)}"


def _unscaled(key: object, value: object) -> bool:
    """What stage 3 cannot be read without and every engine without fp16 has: a file that named none may gain it on a
    way through stage 3. None may lose it."""
    if key == "loss_scaler":
        return type(value).__name__ == "LossScaler" and vars(value) == {"cur_scale": 1.0, "dynamic": False}
    return key in ("dynamic_loss_scale", "overflow") and value is False


def _nothing(value: object) -> bool:
    return value is None or (isinstance(value, dict) and not value)


def _short(value: object) -> str:
    text = f"{type(value).__name__} {value!r}" if value is not MISSING else "missing"
    return " ".join(text.split())[:80]
