"""Native ZeRO checkpoints that `engine.load_checkpoint` of an ordinary DeepSpeed script accepts, as streams."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from pipeline.checkpoints.layouts.zero_format import SUB_GROUP, Layout, model_file, optimizer_file, sub_groups
from pipeline.checkpoints.serialization.byte_stream import File, Piece, whole
from pipeline.checkpoints.serialization.torch_archive import Draft
from pipeline.checkpoints.state import LazyTensor, State
from pipeline.errors import UserError

SLOTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Flat:
    """One flat tensor per rank: parameters of optimizer group `group`, one behind the other."""

    group: int
    names: tuple[str, ...]
    layout: Layout

    def pieces(self, entries: dict[str, LazyTensor], rank: int, stored: bool = False) -> list[Piece]:
        """This rank's flat; a parameter without an entry (a fresh moment) is zeros. stored: without the padding that stages
        1 and 2 leave out of the weights."""
        found, position = [], 0
        for name, cuts in zip(self.names, self.layout.pieces(), strict=True):
            for cut in (cut for cut in cuts if cut.rank == rank):
                found += [Piece(None, 0, cut.offset - position)] if cut.offset > position else []
                found.append(Piece(entries.get(name), cut.start, cut.start + cut.length))
                position = cut.offset + cut.length
        end = self.layout.stored(rank) if stored else self.layout.flat
        return found + ([Piece(None, 0, end - position)] if end > position else [])

    def fragments(self, rank: int) -> dict[str, fragment_address]:
        """Where each parameter lies in this rank's flat, as DeepSpeed's own converter wants it."""
        cuts = zip(self.names, self.layout.pieces(), strict=True)
        return OrderedDict(
            (name, fragment_address(cut.length, cut.offset))
            for name, parts in cuts
            for cut in parts
            if cut.rank == rank
        )


def files(
    state: State, folder: Path, *, stage: int, world: int, bf16: bool = False, step: int = 0, sub_group: int = SUB_GROUP
) -> list[File]:
    """The files of `state` (module names, groups in the engine's order) for `world` ranks of ZeRO `stage`. Raises UserError."""
    if foreign := sorted(set(state.slots) - set(SLOTS)):
        raise UserError(f"optimizer state '{foreign[0]}' has no place in this layout; known are {', '.join(SLOTS)}")
    flats = list(_flats(state, stage, world, sub_group))
    ranks = [_optimizer(state, flats, rank, stage, folder, optimizer_file(rank, bf16)) for rank in range(world)]
    dtype = torch.bfloat16 if bf16 else torch.float32
    return ranks + [
        _model(state, flats, stage, world, rank, dtype, step, folder) for rank in range(world if stage == 3 else 1)
    ]


def _flats(state: State, stage: int, world: int, limit: int) -> Iterator[Flat]:
    for number, group in enumerate(state.groups):
        sizes = [math.prod(state.tensors[name].shape) for name in group.names]
        begin = 0
        for count in sub_groups(sizes, world, limit) if stage == 3 else [len(sizes)]:
            names = tuple(group.names[begin : begin + count])
            yield Flat(number, names, Layout(stage, world, tuple(sizes[begin : begin + count])))
            begin += count


def _optimizer(state: State, flats: list[Flat], rank: int, stage: int, folder: Path, name: str) -> File:
    draft = Draft()
    base = _base(draft, state, flats, rank)
    inner = (
        _stage_3(draft, state, flats, rank, base) if stage == 3 else _stage_2(draft, state, flats, rank, stage, base)
    )
    return draft.file(name, {"optimizer_state_dict": inner, "ds_version": deepspeed.__version__}, folder)


def _base(draft: Draft, state: State, flats: list[Flat], rank: int) -> dict:
    """torch's own optimizer state, one flat tensor per slot and flat."""
    numbers = [[i for i, flat in enumerate(flats) if flat.group == g] for g in range(len(state.groups))]
    groups = [{**group.hyper, "params": params} for group, params in zip(state.groups, numbers, strict=True)]
    held = {}
    for number, flat in enumerate(flats):
        step = torch.tensor(state.steps.get(flat.names[0], 0.0) if flat.names else 0.0)
        held[number] = {
            "step": draft.value(step),
            **{slot: draft.hole(flat.pieces(state.slots.get(slot, {}), rank)) for slot in SLOTS},
        }
    return {"state": held, "param_groups": groups}


def _stage_2(draft: Draft, state: State, flats: list[Flat], rank: int, stage: int, base: dict) -> dict:
    return {
        "base_optimizer_state": base,
        "single_partition_of_fp32_groups": [
            draft.hole(flat.pieces(state.tensors, rank, stored=True)) for flat in flats
        ],
        "group_paddings": [flat.layout.flat - flat.layout.stored(rank) for flat in flats],
        "param_slice_mappings": [flat.fragments(rank) for flat in flats],
        "partition_count": [flat.layout.world for flat in flats],
        "zero_stage": ZeroStageEnum(stage),
        "loss_scaler": LossScaler(1.0),
        "dynamic_loss_scale": False,
        "overflow": False,
        "ds_version": deepspeed.__version__,
    }


def _stage_3(draft: Draft, state: State, flats: list[Flat], rank: int, base: dict) -> dict:
    return {
        "zero_stage": ZeroStageEnum.weights,
        "loss_scaler": LossScaler(1.0),
        "dynamic_loss_scale": False,
        "overflow": False,
        "partition_count": flats[0].layout.world if flats else 1,
        "optimizer_state_dict": base,
        "fp32_flat_groups": [draft.hole(flat.pieces(state.tensors, rank)) for flat in flats],
    }


def _model(
    state: State, flats: list[Flat], stage: int, world: int, rank: int, dtype: torch.dtype, step: int, folder: Path
) -> File:
    draft = Draft()
    module = _placeholders(draft, state) if stage == 3 else _module(draft, state, dtype)
    module |= {name: draft.hole(whole(entry), entry.shape) for name, entry in state.buffers.items()}
    shapes = {name: torch.Size(state.tensors[name].shape) for name in state.frozen}
    tree = {
        "module": module,
        "buffer_names": list(state.buffers),
        "optimizer": None,
        "lr_scheduler": None,
        "param_shapes": [{name: torch.Size(state.tensors[name].shape) for name in flat.names} for flat in flats],
        "frozen_param_shapes": shapes or None,
        "frozen_param_fragments": _fragments(draft, state, stage, world, rank) or None,
        "shared_params": dict(state.aliases),
        "data_sampler": None,
        "random_ltd": None,
        "skipped_steps": 0,
        "global_steps": step,
        "global_samples": 0,
        "dp_world_size": world,
        "mp_world_size": 1,
        "ds_config": {},
        "ds_version": deepspeed.__version__,
        "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
    }
    return draft.file(model_file(stage, rank), tree, folder)


def _module(draft: Draft, state: State, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every key of the module's state_dict; tied names share storage."""
    module = {name: draft.hole(whole(entry), entry.shape, dtype) for name, entry in state.tensors.items()}
    return module | {alias: module[owner] for alias, owner in state.aliases.items()}


def _placeholders(draft: Draft, state: State) -> dict[str, Tensor]:
    return {name: draft.hole([]) for name in (*state.tensors, *state.aliases)}


def _fragments(draft: Draft, state: State, stage: int, world: int, rank: int) -> dict[str, Tensor]:
    """Frozen parameters: whole in stages 1 and 2, this rank's padded piece in stage 3."""
    if stage < 3:
        return {name: draft.hole(whole(state.tensors[name]), state.tensors[name].shape) for name in state.frozen}
    flats = {name: Flat(0, (name,), Layout(3, world, (math.prod(state.tensors[name].shape),))) for name in state.frozen}
    return {name: draft.hole(flat.pieces(state.tensors, rank)) for name, flat in flats.items()}
