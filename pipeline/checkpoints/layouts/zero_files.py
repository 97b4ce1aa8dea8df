"""Which files of a tag folder are the checkpoint.

Scripts save again and again under one tag, in another precision or on fewer ranks; then shards of an earlier save lie
beside those of the last. Read are the files that DeepSpeed's engine would read: those that the model_states file names
by its number of ranks and its precision. What else lies there is named, and files of a model that is cut over the ranks
of another parallel dimension are refused: each of them holds a part of the model.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.checkpoints.layouts.zero_format import model_file, open_file, optimizer_file
from pipeline.errors import UserError

MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
EXPERTS = re.compile(r"expp_rank_|(?:^|_)expert_\d")
PIPELINE = re.compile(r"layer_\d+-")
TENSORS = {".pt", ".bin", ".pth", ".pkl", ".ckpt", ".safetensors", ".distcp"}
"""Endings of files that may hold a part of the state."""
OURS = "plan.safetensors"
"""An expansion's plan: it goes along as it is."""
MERGE = "merge first: python -m deepspeed.checkpoint.ds_to_universal --input_folder DIR --output_folder OUT"


@dataclass(frozen=True)
class TagFiles:
    """model: the content of rank 0's model_states file. optimizers: the ranks' files in order; none of a checkpoint
    that keeps everything in one file. strangers: what else lies there."""

    stage_3: bool
    model: dict[str, Any]
    optimizers: tuple[Path, ...]
    strangers: tuple[str, ...]

    def remarks(self) -> tuple[str, ...]:
        """What is not read, in words."""
        return strangers_named(self.strangers)


def strangers_named(names: tuple[str, ...]) -> tuple[str, ...]:
    """What is not read, in words."""
    if not names:
        return ()
    return (f"{len(names)} files are no part of the checkpoint and left behind: {', '.join(names)}",)


def tag_files(folder: Path) -> TagFiles:
    """The files of a native tag folder. Raises UserError for a part of a model, for a missing file, and where two saves
    cannot be told apart."""
    names = holding_tensors(folder)
    require_one_part(folder, names)
    stage_3 = _stage_3(folder, names)
    model = open_file(folder / model_file(3 if stage_3 else 1), opaque=True)
    require_whole_model(folder, model)
    ranks = _ranks(folder, names, stage_3, model)
    read = {model_file(3, rank) for rank in range(len(ranks))} if stage_3 else {model_file(1)}
    strangers = tuple(name for name in names if name not in read | set(ranks))
    return TagFiles(stage_3, model, tuple(folder / name for name in ranks), strangers)


def holding_tensors(folder: Path) -> list[str]:
    """The files of a folder that may hold a part of the state, by name."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in TENSORS and path.name != OURS and not path.name.startswith(".") and path.is_file()
    )


def require_one_part(folder: Path, names: list[str]) -> None:
    """Raises UserError for files of a model that is cut over ranks of another dimension than the data's."""
    if experts := [name for name in names if EXPERTS.search(name)]:
        raise UserError(
            f"{folder}: '{experts[0]}' holds experts (MoE), which are not read here; save the whole model with "
            "save_pretrained and start from that folder"
        )
    if layers := [name for name in names if PIPELINE.match(name)]:
        raise UserError(f"{folder}: pipeline parallel ('{layers[0]}' holds one layer); {MERGE}")
    matches = [match for name in names for match in (MODEL.fullmatch(name), OPTIMIZER.fullmatch(name)) if match]
    if others := [match for match in matches if int(match[2])]:
        count = max(int(match[2]) for match in others) + 1
        raise UserError(f"{folder}: tensor parallel over {count} ranks ('{others[0][0]}' holds a part); {MERGE}")
    known = [name for name in names if MODEL.fullmatch(name) or OPTIMIZER.fullmatch(name)]
    if odd := [name for name in names if name.endswith("states.pt") and name not in known]:
        raise UserError(f"{folder}: '{odd[0]}' is not named as DeepSpeed names its files; rename it, or move it away")


def require_whole_model(folder: Path, model: dict[str, Any]) -> None:
    """Raises UserError where a model_states file says that it holds a part of the model."""
    degrees = model.get("checkpoint_parallel_dimensions") or {}
    tensor = max(int(model.get("mp_world_size") or 1), int(degrees.get("tp_degree") or 1))
    if tensor > 1:
        raise UserError(f"{folder}: tensor parallel over {tensor} ranks (its mp_world_size); {MERGE}")
    if (stages := int(degrees.get("pp_degree") or 1)) > 1:
        raise UserError(f"{folder}: pipeline parallel over {stages} ranks (its pp_degree); {MERGE}")


def _stage_3(folder: Path, names: list[str]) -> bool:
    """Whether stage 3 has written last: its model_states files are others than those of the other stages."""
    whole, cut = model_file(1) in names, model_file(3) in names
    if whole and cut:
        raise UserError(
            f"{folder}: both '{model_file(1)}' and '{model_file(3)}' lie here, of two saves under one tag; "
            "remove the files of the older one"
        )
    return cut


def _ranks(folder: Path, names: list[str], stage_3: bool, model: dict[str, Any]) -> list[str]:
    """The optimizer files in order of ranks."""
    shards = [name for name in names if OPTIMIZER.fullmatch(name)]
    if model.get("optimizer") or (not shards and not stage_3):
        return []  # everything is in one file: what an earlier save has left beside it is older
    halves = {name.startswith("bf16_") for name in shards}
    bf16 = _in_bf16(folder, model) if len(halves) > 1 else True in halves
    found = [name for name in shards if name.startswith("bf16_") is bf16]
    world = model["dp_world_size"]
    for rank in range(world):
        if (name := optimizer_file(rank, bf16)) not in found:
            raise UserError(
                f"{folder}: the optimizer file of rank {rank} is missing ({name}); written by {world} ranks, "
                f"{len(found)} optimizer files found"
            )
    return [optimizer_file(rank, bf16) for rank in range(world)]


def _in_bf16(folder: Path, model: dict[str, Any]) -> bool:
    """The precision of the last save, by the module's parameters."""
    names = [name for group in model["param_shapes"] for name in group]
    types = {model["module"][name].dtype for name in names if isinstance(model["module"].get(name), Tensor)}
    if len(types) != 1:
        raise UserError(
            f"{folder}: optimizer files with and without 'bf16_' lie here, of two saves under one tag; remove the "
            "older ones"
        )
    return types == {torch.bfloat16}
