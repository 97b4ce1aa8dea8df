"""Native ZeRO checkpoints that `engine.load_checkpoint` of an ordinary DeepSpeed script accepts, as streams."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.checkpoints.layouts import carried, deepspeed_pickles, whole_matrices
from pipeline.checkpoints.layouts.zero_format import (
    STEP,
    SUB_GROUP,
    FlatPartition,
    model_file,
    optimizer_file,
    said_sub_group_size,
    sub_groups,
)
from pipeline.checkpoints.serialization.byte_stream import OutputFile, TensorSlice, whole
from pipeline.checkpoints.serialization.torch_archive import TorchArchive
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import LazyTensor
from pipeline.errors import UserError

MANY_RANKS, LEAST_SHARE = 256, 1024
"""Beyond so many ranks each must have so many parameters."""
UNSET: dict[str, Any] = {
    "lr_scheduler": None,
    "data_sampler": None,
    "random_ltd": None,
    "skipped_steps": 0,
    "global_samples": 0,
    "ds_config": {},
}
"""What DeepSpeed's engine looks up, where a source says nothing of it."""


@dataclass(frozen=True)
class Flat:
    """One flat tensor per rank: parameters of optimizer group `group`, one behind the other."""

    group: int
    names: tuple[str, ...]
    partition: FlatPartition

    def slices(self, tensors: dict[str, LazyTensor], rank: int, stored: bool = False) -> list[TensorSlice]:
        """This rank's flat; a parameter without a tensor (a fresh moment) is zeros. stored: without the padding that
        stages 1 and 2 leave out of the weights."""
        slices, position = [], 0
        for number, cut in self.partition.of_rank(rank):
            if cut.offset > position:
                slices.append(TensorSlice(None, 0, cut.offset - position))
            slices.append(TensorSlice(tensors.get(self.names[number]), cut.start, cut.start + cut.length))
            position = cut.offset + cut.length
        end = self.partition.stored(rank) if stored else self.partition.flat
        return slices + ([TensorSlice(None, 0, end - position)] if end > position else [])

    def matrices(self, tensors: dict[str, LazyTensor], rank: int) -> list[TensorSlice]:
        """All of each parameter that this rank has a part of; one without a tensor is zeros."""
        mine = whole_matrices.of_rank(self.partition, rank)
        return [TensorSlice(tensors.get(self.names[n]), 0, self.partition.sizes[n]) for n in mine]

    def fragments(self, rank: int) -> "OrderedDict[str, Any]":
        """Where each parameter lies in this rank's flat, as DeepSpeed's own converter reads it."""
        mine = self.partition.of_rank(rank)
        return OrderedDict((self.names[n], deepspeed_pickles.fragment(cut.length, cut.offset)) for n, cut in mine)


def files(
    state: State,
    folder: Path,
    *,
    stage: int,
    world: int,
    bf16: bool = False,
    sub_group: int | None = None,
    kind: "type[ZeroWriter] | None" = None,
) -> list[OutputFile]:
    """The files of `state` (module names, groups in the engine's order) for `world` ranks of ZeRO `stage`. sub_group:
    DeepSpeed's sub_group_size; None: the state's, else that of the config which goes along, else DeepSpeed's default.
    kind: of the writer, where the optimizer files are others than the stage's usual ones. Raises UserError for
    optimizer state that is not known, and for ranks that would have next to nothing."""
    _require_shares(state, world)
    said = (sub_group, state.sub_group, said_sub_group_size(state.engine), SUB_GROUP)
    flats = _flats(state, stage, world, next(limit for limit in said if limit is not None))
    writer = (kind or ZeroWriter)(state, list(flats), folder, stage, world, bf16)
    optimizers = [writer.optimizer(rank) for rank in range(world)]
    return optimizers + [writer.model(rank) for rank in range(world if stage == 3 else 1)]


def _require_shares(state: State, world: int) -> None:
    """A file for every rank, whatever is in it: thousands of them take long, and nobody trains so little on so many."""
    count = sum(tensor.numel for tensor in state.tensors.values())
    if world > MANY_RANKS and count < LEAST_SHARE * world:
        raise UserError(
            f"world size {world}: each rank would have {count // world} of {count:,} parameters; choose at most "
            f"{max(MANY_RANKS, count // LEAST_SHARE)}"
        )


def _flats(state: State, stage: int, world: int, limit: int) -> Iterator[Flat]:
    for number, group in enumerate(state.groups):
        sizes = [state.tensors[name].numel for name in group.names]
        begin = 0
        for count in sub_groups(sizes, world, limit) if stage == 3 else [len(sizes)]:
            names = tuple(group.names[begin : begin + count])
            yield Flat(number, names, FlatPartition(stage, world, tuple(sizes[begin : begin + count])))
            begin += count


class ZeroWriter:
    """What all files of one checkpoint share. whole_matrices: whether stages 1 and 2 keep Muon's momentum whole."""

    whole_matrices: ClassVar[bool] = True

    def __init__(self, state: State, flats: list[Flat], folder: Path, stage: int, world: int, bf16: bool):
        self.state, self.flats, self.folder = state, flats, folder
        self.stage, self.world, self.bf16 = stage, world, bf16
        self.stored = [state.stored_slots(group) for group in state.groups]
        self.holds_state = bool(any(slots or keeps_step for slots, keeps_step in self.stored) or state.scalars)
        self.version = deepspeed_pickles.deepspeed_version()

    def optimizer(self, rank: int) -> OutputFile:
        """A rank's share of the weights in float32 and of the optimizer's state."""
        archive = TorchArchive()
        base = self._base(archive, rank)
        tree = {"optimizer_state_dict": self.inner(archive, rank, base), "ds_version": self.version}
        return archive.file(optimizer_file(rank, self.bf16), tree, self.folder)

    def inner(self, archive: TorchArchive, rank: int, base: dict[str, Any]) -> dict[str, Any]:
        """What DeepSpeed's optimizer of the stage keeps. base: torch's part of it."""
        return self._stage_3(archive, rank, base) if self.stage == 3 else self._stage_2(archive, rank, base)

    def _base(self, archive: TorchArchive, rank: int) -> dict[str, Any]:
        """torch's own optimizer state, one flat tensor per slot and flat."""
        numbers = [[i for i, flat in enumerate(self.flats) if flat.group == g] for g in range(len(self.state.groups))]
        groups = [{**group.hyper, "params": params} for group, params in zip(self.state.groups, numbers, strict=True)]
        flats = enumerate(self.flats if self.holds_state else ())
        states = {number: self._slots(archive, flat, rank) for number, flat in flats}
        return {"state": states, "param_groups": groups}

    def _slots(self, archive: TorchArchive, flat: Flat, rank: int) -> dict[str, Any]:
        state: dict[str, Any] = {}
        slots, keeps_step = self.stored[flat.group]
        if keeps_step:
            state[STEP] = archive.value(torch.tensor(self._step(flat)))
        for slot in slots:
            if (pieces := self._pieces(flat, slot, rank)) is not None:
                state[slot] = archive.placeholder(pieces)
        for key, values in self.state.scalars.items():
            state[key] = carried.stored(self._scalar(flat, key, values), archive)
        return state

    def _pieces(self, flat: Flat, slot: str, rank: int) -> list[TensorSlice] | None:
        """What a rank keeps of a slot; None: nothing at all."""
        tensors, hyper = self.state.slots.get(slot, {}), self.state.groups[flat.group].hyper
        whole = self.whole_matrices and whole_matrices.keeps_whole(hyper, self.stage, slot)
        return flat.matrices(tensors, rank) or None if whole else flat.slices(tensors, rank)

    def _step(self, flat: Flat) -> float:
        """The one step that a flat tensor has."""
        steps = {self.state.steps.get(name, 0.0): name for name in flat.names}
        if len(steps) > 1:
            listed = ", ".join(f"'{name}' at {step:g}" for step, name in steps.items())
            raise UserError(
                f"parameters of one optimizer group stand at different steps ({listed}), where native files count one "
                "for all; take the weights alone (--format huggingface)"
            )
        return next(iter(steps), 0.0)

    def _scalar(self, flat: Flat, key: str, values: dict[str, Any]) -> Any:
        """The one value of `key` that a flat tensor has."""
        found = [values.get(name) for name in flat.names]
        other = next((n for n, value in zip(flat.names, found, strict=True) if not carried.same(value, found[0])), None)
        if other is not None:
            raise UserError(
                f"optimizer state '{key}' is {_short(found[0])} of '{flat.names[0]}' and {_short(values.get(other))} "
                f"of '{other}', where native files keep one for all of a group; take the weights alone "
                "(--format huggingface)"
            )
        return next(iter(found), None)

    def _stage_2(self, archive: TorchArchive, rank: int, base: dict[str, Any]) -> dict[str, Any]:
        weights = [archive.placeholder(flat.slices(self.state.tensors, rank, stored=True)) for flat in self.flats]
        return {
            "base_optimizer_state": base,
            "single_partition_of_fp32_groups": weights,
            "group_paddings": [flat.partition.flat - flat.partition.stored(rank) for flat in self.flats],
            "param_slice_mappings": [flat.fragments(rank) for flat in self.flats],
            "partition_count": [flat.partition.world for flat in self.flats],
            "zero_stage": deepspeed_pickles.zero_stage(self.stage),
            "ds_version": self.version,
            **carried.stored(self.state.scaling, archive),
        }

    def _stage_3(self, archive: TorchArchive, rank: int, base: dict[str, Any]) -> dict[str, Any]:
        return {
            "zero_stage": deepspeed_pickles.zero_stage(3),
            "loss_scaler": deepspeed_pickles.loss_scaler(),
            "dynamic_loss_scale": False,
            "overflow": False,
            **carried.stored(self.state.scaling, archive),
            "partition_count": self.flats[0].partition.world if self.flats else 1,
            "optimizer_state_dict": base,
            "fp32_flat_groups": [archive.placeholder(flat.slices(self.state.tensors, rank)) for flat in self.flats],
        }

    def model(self, rank: int) -> OutputFile:
        """The module's tensors, or in stage 3 their shapes, with DeepSpeed's counters."""
        state, archive = self.state, TorchArchive()
        module = self._names(archive) if self.stage == 3 else self.module(archive)
        frozen = {name: torch.Size(state.tensors[name].shape) for name in state.frozen}
        tree = {
            **self.common(archive, module),
            "optimizer": None,
            "param_shapes": [{n: torch.Size(state.tensors[n].shape) for n in flat.names} for flat in self.flats],
            "frozen_param_shapes": frozen or None,
            "frozen_param_fragments": self._frozen(archive, rank) or None,
        }
        return archive.file(model_file(self.stage, rank), tree, self.folder)

    def common(self, archive: TorchArchive, module: dict[str, Tensor]) -> dict[str, Any]:
        """What a model_states file of any stage holds, the buffers added to the module."""
        state = self.state
        buffers = {name: archive.placeholder(whole(b), b.shape, b.dtype) for name, b in state.buffers.items()}
        return {
            **UNSET,
            "ds_version": self.version,
            **carried.stored(state.engine, archive),
            "module": module | buffers,
            "buffer_names": list(state.buffers),
            "shared_params": dict(state.aliases),
            "global_steps": state.step,
            "dp_world_size": self.world,
            "mp_world_size": 1,
            "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
        }

    def module(self, archive: TorchArchive) -> dict[str, Tensor]:
        """Every key of the module's state_dict, frozen parameters in their own dtype, the others in the training's;
        tied names share storage."""
        module = {
            name: archive.placeholder(whole(tensor), tensor.shape, self._dtype(name))
            for name, tensor in self.state.tensors.items()
        }
        return module | {alias: module[owner] for alias, owner in self.state.aliases.items()}

    def _dtype(self, name: str) -> torch.dtype:
        """Of a parameter of the module."""
        if name in self.state.frozen:
            return self.state.tensors[name].dtype
        return torch.bfloat16 if self.bf16 else torch.float32

    def _names(self, archive: TorchArchive) -> dict[str, Tensor]:
        """Every key of the module's state_dict, without its numbers."""
        names = {name: name for name in self.state.tensors} | self.state.aliases
        return {name: archive.placeholder([], None, self._dtype(owner)) for name, owner in names.items()}

    def _frozen(self, archive: TorchArchive, rank: int) -> dict[str, Tensor]:
        """Frozen parameters: whole in stages 1 and 2, this rank's padded slice in stage 3."""
        tensors = {name: self.state.tensors[name] for name in self.state.frozen}
        if self.stage < 3:
            return {name: archive.placeholder(whole(t), t.shape, t.dtype) for name, t in tensors.items()}
        flats = {name: Flat(0, (name,), FlatPartition(3, self.world, (t.numel,))) for name, t in tensors.items()}
        return {
            name: archive.placeholder(flats[name].slices(tensors, rank), None, tensor.dtype)
            for name, tensor in tensors.items()
        }


def _short(value: object) -> str:
    """A number in words."""
    return f"{float(value):g}" if isinstance(value, Tensor | int | float) else "missing"
