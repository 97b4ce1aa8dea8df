"""DeepSpeed's universal layout: a folder per parameter, loadable at any world size.

`TAG/zero/<name>/{fp32,<slot>}.pt` hold `{"param": tensor}` (written by us, and by DeepSpeed from stages 1 and 2) or
bare flat tensors (by DeepSpeed from stage 3; the true shapes are in the model_states file beside them). Known holes of
DeepSpeed's loader (0.19.8): it checks no shapes, restores no buffers, and in stage 3 it loads AdamW alone, shares one
step and group 0's hyper-parameters among all groups; `engine.load` repairs the last."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.checkpoints.layouts import carried
from pipeline.checkpoints.layouts.beside_parameters import beside
from pipeline.checkpoints.layouts.deepspeed_pickles import DynamicLossScaler, deepspeed_version
from pipeline.checkpoints.layouts.layout import Layout
from pipeline.checkpoints.layouts.zero_files import MODEL, holding_tensors, strangers_named
from pipeline.checkpoints.layouts.zero_format import STEP, files_of_deepspeed, open_file, require_numbers, step_of
from pipeline.checkpoints.relative_paths import is_file_name
from pipeline.checkpoints.serialization.byte_stream import OutputFile, TensorSlice, whole
from pipeline.checkpoints.serialization.torch_archive import TorchArchive, small_file
from pipeline.checkpoints.state import Group, State
from pipeline.checkpoints.tensors import LazyTensor, WholeTensor
from pipeline.errors import UserError
from pipeline.optim import optimizers
from pipeline.optim.optimizers import USE_MUON, AdamW, Muon, OptimizerSpec, Slot

if TYPE_CHECKING:
    from pipeline.checkpoints.layouts import CheckpointLayout

WEIGHTS, SCALARS = "fp32", "scalars"
MODEL_FILES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
"""Stages 1 and 2 read one, stage 3 the other."""


class Universal(Layout):
    """As `ds_to_universal.py` writes."""

    name = "universal"
    title = "universal (DeepSpeed), any number of ranks"
    load_universal = True

    def detect(self, folder: Path) -> bool:
        return (folder / "zero").is_dir()

    def read(self, folder: Path) -> State:
        with files_of_deepspeed(folder):
            return read(folder)

    def files(self, state: State, folder: Path, target: CheckpointLayout) -> list[OutputFile]:
        return files(state, folder)

    def bytes_on_disk(self, parameters: int, kept: int, target: CheckpointLayout) -> int:
        return 4 * (parameters + kept)

    def engine_loads(self, stored: CheckpointLayout, engine: CheckpointLayout, optimizer: OptimizerSpec) -> bool:
        """Stage 0 has no universal loader."""
        return engine.zero_stage in optimizer.universal_stages

    def remarks(self, state: State) -> list[str]:
        remarks = [_loader(state)]
        if state.frozen or state.buffers:
            remarks.append(
                f"DeepSpeed's universal loader restores no frozen parameters ({len(state.frozen)}) and no buffers "
                f"({len(state.buffers)}), which the result holds; use --format zero"
            )
        if state.scalars:
            listed = ", ".join(map(repr, state.scalars))
            remarks.append(
                f"DeepSpeed's universal loader restores no {listed}, which the result holds; use --format zero"
            )
        if isinstance(state.scaling.get("loss_scaler"), DynamicLossScaler):
            remarks.append("DeepSpeed's universal loader restores no loss scale in stage 3; use --format zero there")
        return remarks


def _loader(state: State) -> str:
    """What DeepSpeed's loader makes of it, by stages."""
    if isinstance(state.known_optimizer, Muon):
        return (
            "DeepSpeed's universal loader cuts Muon's momentum as it cuts weights, and the next step fails on it or is "
            "wrong; lemon reshard reads the result, an engine takes --format zero"
        )
    if isinstance(state.known_optimizer, AdamW):
        third = (
            "it gives every group the first group's hyper-parameters and lets groups share one step counter, which "
            "this pipeline's engine repairs; a plain script should use --format zero --zero-stage 3"
        )
    else:
        third = "it loads AdamW's state alone; use --format zero --zero-stage 3 there"
    return f"DeepSpeed loads universal checkpoints into stages 1 and 2 as they are; in stage 3 {third}"


class ParameterFile(WholeTensor):
    """The tensor of one file, mapped when it is read; DeepSpeed's stage 3 writes it flat."""

    def __init__(self, path: Path, shape: tuple[int, ...] | None = None):
        self._path = path
        tensor = self.load()
        if shape is not None and tensor.numel() != math.prod(shape):
            raise UserError(
                f"{path}: holds {tensor.numel()} numbers, its shape says {math.prod(shape)}; the file is damaged"
            )
        super().__init__(tensor.shape if shape is None else shape)

    def load(self) -> Tensor:
        content = open_file(self._path)
        tensor = content.get("param") if isinstance(content, dict) else content
        if not isinstance(tensor, Tensor):
            raise UserError(f"{self._path}: holds no tensor; the file is damaged, or of another tool")
        require_numbers(self._path, "its content", tensor)
        return tensor


def read(folder: Path) -> State:
    """The state in a universal tag folder, in module names. Raises UserError."""
    root = folder / "zero"
    names = sorted(path.parent.relative_to(root).as_posix() for path in root.rglob(f"{WEIGHTS}.pt"))
    if not names:
        raise UserError(f"{folder}: no parameter folders below 'zero'; this is no universal checkpoint")
    optimizer, model = open_file(root / "optimizer_state.pt"), _model(folder)
    shapes = _shapes(model)
    flat = {} if _merged(model) else {name: shape for group in shapes for name, shape in group.items()}
    groups = _groups(shapes, optimizer)
    tied = model.get("shared_params") or {}
    kept = {name: _slots(root / name) for name in names if name not in tied}
    expected = _expected_slots(kept, groups)
    owners = [name for name in kept if kept[name] or not expected]
    _require_whole(folder, groups, names, owners, list(expected))
    slots = {slot: [name for name in owners if having is None or name in having] for slot, having in expected.items()}
    hypers = {name: group.hyper for group in groups for name in group.names}
    steps = {name: _step(root / name, optimizer, kept[name], hypers.get(name, {})) for name in owners}
    state = State(  # DeepSpeed writes tied names a second time, without moments: those are left out
        {name: ParameterFile(root / name / f"{WEIGHTS}.pt", flat.get(name)) for name in owners or names},
        slots={
            slot: {name: ParameterFile(root / name / f"{slot}.pt", flat.get(name)) for name in having}
            for slot, having in slots.items()
        },
        step=int(model.get("global_steps", 0)),
        steps={name: step for name, step in steps.items() if step is not None},
        groups=groups,
        unread=_strangers(folder),
    )
    return _with_rest(folder, state, model, optimizer)


def _with_rest(folder: Path, state: State, model: dict[str, Any], optimizer: dict[str, Any]) -> State:
    """With what lies in the model_states file and beside the groups in the optimizer's: DeepSpeed's own universal
    loader restores no buffers and no frozen parameters; here they go along."""
    engine, lost = carried.carried(model, carried.OF_THE_MODEL)
    scaling, more = carried.carried(optimizer, carried.OF_THE_OPTIMIZER | {"param_groups", "group_names", SCALARS})
    scalars = optimizer.get(SCALARS) or {}
    if not isinstance(scalars, dict) or not all(isinstance(each, dict) for each in scalars.values()):
        file = folder / "zero" / "optimizer_state.pt"
        raise UserError(f"{file}: its '{SCALARS}' are no mappings; the file is damaged")
    state = replace(state, scalars=scalars, engine=engine, scaling=scaling, unread=(*state.unread, *lost, *more))
    if _merged(model) or "module" not in model:
        held = ", ".join(model.get("buffer_names") or ())
        cut = (f"buffers lie on the ranks of a tensor parallel model and are left behind: {held}",) if held else ()
        return replace(state, unread=(*state.unread, *cut))
    world = 0 if (folder / MODEL_FILES[0]).exists() else int(model["dp_world_size"])
    rest = beside(folder, model, list(state.tensors), world)
    return replace(
        state,
        tensors=state.tensors | rest.frozen,
        frozen=tuple(rest.frozen),
        aliases=rest.aliases,
        buffers=rest.buffers,
        unread=(*state.unread, *rest.lost),
    )


def _merged(model: dict[str, Any]) -> bool:
    """Whether the folders were merged from ranks of a tensor parallel model: the shapes are those of its parts."""
    return int(model.get("mp_world_size") or 1) > 1


def _strangers(folder: Path) -> tuple[str, ...]:
    """Files beside the folders that are not read, in words."""
    return strangers_named(tuple(name for name in holding_tensors(folder) if not MODEL.fullmatch(name)))


def _slots(folder: Path) -> list[str]:
    """The optimizer slots that a parameter's folder has."""
    return sorted(path.stem for path in folder.glob("*.pt") if path.stem not in (WEIGHTS, STEP))


def _expected_slots(kept: dict[str, list[str]], groups: tuple[Group, ...]) -> dict[str, list[str] | None]:
    """Slot -> the parameters that must have it, None: all, as with a known optimizer; of any other those that have."""
    slots = list(dict.fromkeys(slot for names in kept.values() for slot in names))
    spec = optimizers.recognise(slots, [group.hyper for group in groups])
    if spec and not _has_surplus(spec, kept, groups):
        holders = {slot.name: _holders(spec, slot, groups) for slot in spec.slots}
        return {slot: names for slot, names in holders.items() if names != []}
    return {slot: [name for name, held in kept.items() if slot in held] for slot in slots}


def _has_surplus(spec: OptimizerSpec, kept: dict[str, list[str]], groups: tuple[Group, ...]) -> bool:
    """Whether some parameter has a slot that this optimizer does not keep of it."""
    owned = ((name, {slot.name for slot in spec.slots_in(group.hyper)}) for group in groups for name in group.names)
    return any(not own.issuperset(kept.get(name, ())) for name, own in owned)


def _holders(spec: OptimizerSpec, slot: Slot, groups: tuple[Group, ...]) -> list[str] | None:
    """The parameters for which the optimizer keeps a slot; None: all."""
    having = [group for group in groups if slot in spec.slots_in(group.hyper)]
    return None if len(having) == len(groups) else [name for group in having for name in group.names]


def _require_whole(
    folder: Path, groups: tuple[Group, ...], names: list[str], owners: list[str], slots: list[str]
) -> None:
    grouped = {name for group in groups for name in group.names}
    if damaged := sorted(name for name in grouped if name not in owners or name not in names):
        lacking = "optimizer state" if slots and damaged[0] in names else f"{WEIGHTS}.pt"
        raise UserError(f"{folder}: '{damaged[0]}' has no {lacking}; the checkpoint is not complete")


def _model(folder: Path) -> dict[str, Any]:
    """The model_states file beside the folders: counters, client state, buffers; the shapes where DeepSpeed has copied
    it."""
    for file in MODEL_FILES:
        if (folder / file).exists():
            content: dict[str, Any] = open_file(folder / file, opaque=True)
            return content
    return {}


def _shapes(model: dict[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    """Names and true shapes by group; files of this pipeline need none."""
    groups = model.get("param_shapes") or []
    return [{name: tuple(shape) for name, shape in group.items()} for group in groups]


def _groups(shapes: list[dict[str, tuple[int, ...]]], optimizer: dict[str, Any]) -> tuple[Group, ...]:
    """The optimizer's groups. The names of each are those of its flats, which `params` numbers where stage 3 has cut a
    group into several."""
    hypers: list[dict[str, Any]] = optimizer["param_groups"]
    cut = len(shapes) != len(hypers)
    members = optimizer.get("group_names") or [
        [name for flat in (hyper["params"] if cut else [number]) for name in shapes[flat]] if shapes else []
        for number, hyper in enumerate(hypers)
    ]
    return tuple(
        Group(tuple(names), {key: value for key, value in hyper.items() if key != "params"})
        for names, hyper in zip(members, hypers, strict=True)
    )


def _step(folder: Path, optimizer: dict[str, Any], slots: list[str], hyper: dict[str, Any]) -> float | None:
    """The parameter's own step; DeepSpeed's stage 3 keeps one for each group in the optimizer's file."""
    path = folder / f"{STEP}.pt"
    if path.exists():
        return float(open_file(path))
    if hyper.get(USE_MUON):
        return None
    shared: dict[int, dict[str, Any]] = (optimizer.get("optimizer_state_dict") or {}).get("state", {})
    counter = {key: value for key, value in shared.get(0, {}).items() if key == STEP}
    return step_of({**counter, **dict.fromkeys(slots, torch.empty(0))}, hyper)


def files(state: State, folder: Path) -> list[OutputFile]:
    """The files of `state` (module names) as stages 1, 2 and 3 can load them; fresh moments are zeros."""
    kept = {name: state.stored_slots(group) for group in state.groups for name in group.names}
    output = []
    for name, weights in state.tensors.items():
        if name in state.frozen:
            continue
        slots, keeps_step = kept[name]
        _require_file_names(name, slots)
        stored = {WEIGHTS: weights, **{slot: state.slots.get(slot, {}).get(name) for slot in slots}}
        output += [_file(f"zero/{name}/{slot}.pt", stored[slot], weights, folder) for slot in stored]
        if keeps_step:
            output.append(small_file(f"zero/{name}/{STEP}.pt", torch.tensor(state.steps.get(name, 0.0))))
    output.append(small_file("zero/optimizer_state.pt", _optimizer(state)))
    return output + list(_model_files(state, folder))


def _require_file_names(name: str, slots: list[str]) -> None:
    """Raises UserError for what an unknown optimizer calls as no file can be called, or as another file is."""
    if odd := [slot for slot in slots if not is_file_name(slot) or slot in (WEIGHTS, STEP)]:
        raise UserError(
            f"optimizer state {odd[0]!r} of '{name}' cannot be a file of a universal checkpoint; use --format zero"
        )


def _file(name: str, tensor: LazyTensor | None, weights: LazyTensor, folder: Path) -> OutputFile:
    """A file of one tensor in the shape of the weights; zeros where there is none."""
    archive = TorchArchive()
    slices = [TensorSlice(tensor, 0, weights.numel)]
    return archive.file(name, {"param": archive.placeholder(slices, weights.shape)}, folder)


def _optimizer(state: State) -> dict[str, Any]:
    groups = [{**group.hyper, "params": [index]} for index, group in enumerate(state.groups)]
    first: dict[str, Tensor] = {}
    if state.groups and state.stored_slots(state.groups[0])[1]:
        first[STEP] = torch.tensor(state.steps.get(state.groups[0].names[0], 0.0))
    return {
        "ds_version": deepspeed_version(),
        "param_groups": groups,
        "optimizer_state_dict": {"state": {0: first}, "param_groups": groups},
        "group_names": [list(group.names) for group in state.groups],
        **({SCALARS: carried.stored(state.scalars)} if state.scalars else {}),
        **carried.stored(state.scaling),
    }


def _model_files(state: State, folder: Path) -> Iterator[OutputFile]:
    """Counters, client state and the names that are tied; beside them the first file holds buffers and frozen
    parameters, which no folder has a place for."""
    besides = {**state.buffers, **{name: state.tensors[name] for name in state.frozen}}
    for file in MODEL_FILES:
        archive, first = TorchArchive(), file == MODEL_FILES[0]
        tree = {
            "global_samples": 0,
            "skipped_steps": 0,
            "lr_scheduler": None,
            **carried.stored(state.engine, archive),
            "module": {n: archive.placeholder(whole(t), t.shape, t.dtype) for n, t in besides.items() if first},
            "buffer_names": list(state.buffers) if first else [],
            "shared_params": dict(state.aliases),
            "dp_world_size": 1,
            "mp_world_size": 1,
            "global_steps": state.step,
        }
        yield archive.file(file, tree, folder)
