"""Checkpoints of any layout behind one `State`: `locate`, `read`, `write`.

The models are imported where a config is read: importing every family takes longer than resharding a small checkpoint.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pipeline.checkpoints import manifest, names
from pipeline.checkpoints.layouts import huggingface, universal, zero_read, zero_write
from pipeline.checkpoints.serialization import byte_stream
from pipeline.checkpoints.serialization.byte_stream import File
from pipeline.checkpoints.state import Group, LazyTensor, State
from pipeline.config.schema import TrainStage
from pipeline.errors import UserError
from pipeline.models.architecture import Architecture
from pipeline.records.run_folder import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONFIG = "config.json"


@dataclass(frozen=True)
class CheckpointLayout:
    """How a checkpoint is written. `zero_stage` and `world_size` count for native ZeRO, `bf16` for its file names; `dtype`
    for Hugging Face files (the others hold float32)."""

    name: str = "zero"
    zero_stage: int = 1
    world_size: int = 2
    bf16: bool = False
    dtype: str = "float32"

    @classmethod
    def of(cls, stage: TrainStage, world: int) -> CheckpointLayout:
        """The native layout in which a training stage on `world` ranks reads and writes."""
        return cls("zero", stage.zero_stage, world, stage.precision == "bf16")

    def as_json(self) -> dict:
        more = {"zero": ("zero_stage", "world_size", "bf16"), "huggingface": ("dtype",)}.get(self.name, ())
        return {"layout": self.name, **{name: getattr(self, name) for name in more}}


def locate(path: Path) -> Path:
    """The tag folder that `path` means: itself, the newest complete checkpoint in it, or of a stage. Raises UserError."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; name a run's stage, a checkpoint folder, or one tag in it")
    if detect_layout(path):
        return path
    for folder in (path / "checkpoints", path):
        if newest := manifest.newest(folder):
            return newest
    if (path / "latest").exists():  # a foreign DeepSpeed folder
        tag = (path / "latest").read_text(encoding="utf-8").strip()
        if not tag or tag.startswith("."):
            raise UserError(f"{path / 'latest'}: names no tag ('{tag}'); name the tag folder itself")
        return locate(path / tag)
    stages = {stage.parent.name: read_json(stage) for stage in sorted(path.glob("*/stage.json"))}
    if (
        len(
            sources := {facts.get("origin") for facts in stages.values() if facts.get("kind") == "expand"} & set(stages)
        )
        == 1
    ):
        return locate(path / sources.pop())  # a run: the stage that its one expansion grows from
    if (path / manifest.NAME).exists():
        manifest.read(path)  # names the file that is gone
    hint = f"name one of its stages: {', '.join(stages)}" if stages else "it holds no complete checkpoint"
    raise UserError(f"{path}: {hint}")


def detect_layout(folder: Path) -> str | None:
    """Which layout a tag folder has; None when it is no tag folder."""
    if (folder / "zero").is_dir():
        return "universal"
    if any(folder.glob("*model_states.pt")):
        return "zero"
    return "huggingface" if any((folder / name).exists() for name in huggingface.FILES) else None


def default_layout(source: Path) -> str:
    """A Hugging Face source gives a Hugging Face result, any other native ZeRO."""
    return "huggingface" if detect_layout(locate(source)) == "huggingface" else "zero"


def config_file(folder: Path, config: Path | None = None) -> Path:
    """Where the model's config lies: in the tag folder, or where the user says. Raises UserError when it is missing."""
    place = config or folder
    place = place / CONFIG if place.is_dir() else place
    if not place.exists():
        raise UserError(
            f"{config}: no such config"
            if config
            else f"{folder}: holds no {CONFIG}; name the source's config with --source-config"
        )
    return place


def raw(folder: Path) -> State:
    """The state of a tag folder in the names of its files, whatever model it is; no config is needed. Raises UserError."""
    facts = manifest.read(folder) if (folder / manifest.NAME).exists() else {}
    state = {"zero": zero_read, "universal": universal, "huggingface": huggingface}[_layout(folder)].read(folder)
    return replace(state, provenance=facts.get("provenance", {"flops": "unknown"}))


def _layout(folder: Path) -> str:
    if found := detect_layout(folder):
        return found
    raise UserError(f"{folder}: holds no checkpoint that we know (native ZeRO, universal, or Hugging Face)")


def read(folder: Path, config: Path | None = None) -> tuple[State, PretrainedConfig]:
    """The state of a tag folder in published names, and its model's config. Raises UserError.

    `config`: a config.json (or a folder with one) for a checkpoint that holds none.
    """
    from pipeline import models

    family, found = models.read_config(config_file(folder, config))
    architecture, state = models.architecture_of(found), raw(folder)
    known = names.published(set(state.tensors), architecture, family.heads[0].model_class.base_model_prefix)
    state = replace(state, tensors={n: e for n, e in state.tensors.items() if n in known}).renamed(known)
    state = replace(state, aliases=architecture.aliases)
    return replace(state, tensors=_shaped(folder, state, architecture), slots=_shaped_slots(state, architecture)), found


def _shaped(folder: Path, state: State, architecture: Architecture) -> dict[str, LazyTensor]:
    """The tensors in the table's order and shapes; names and sizes must be the table's, or what follows is shifted silently.
    DeepSpeed's universal files of stage 3 are flat: they get their shape here."""
    wanted = {row.name: architecture.shape(row) for row in architecture.rows()}
    if missing := sorted(set(wanted) - set(state.tensors)):
        raise UserError(
            f"{folder}: {len(missing)} tensors of the config's model are missing, such as '{missing[0]}'; is it the right config?"
        )
    if extra := sorted(set(state.tensors) - set(wanted)):
        raise UserError(
            f"{folder}: {len(extra)} tensors belong to no part of the config's model, such as '{extra[0]}'; is it the right config?"
        )
    for name, shape in wanted.items():
        held = state.tensors[name].shape
        if held != shape and held != (math.prod(shape),):
            raise UserError(f"{folder}: '{name}' has shape {held}, the config says {shape}; is it the right config?")
    return {name: _as(state.tensors[name], shape) for name, shape in wanted.items()}


def _shaped_slots(state: State, architecture: Architecture) -> dict[str, dict[str, LazyTensor]]:
    shapes = {row.name: architecture.shape(row) for row in architecture.rows()}
    return {
        slot: {name: _as(entry, shapes[name]) for name, entry in entries.items()}
        for slot, entries in state.slots.items()
    }


def _as(entry: LazyTensor, shape: tuple[int, ...]) -> LazyTensor:
    return LazyTensor(shape, lambda: entry.open().view(shape), entry.window)


def write(
    state: State,
    config: PretrainedConfig,
    folder: Path,
    layout: CheckpointLayout,
    *,
    step: int = 0,
    workers: int = 1,
    progress: bool = False,
    read: Sequence[Path] = (),
) -> tuple[dict[str, dict], dict[Path, dict]]:
    """Write `state` (published names) into the staged tag folder in the layout of `form`, config.json with it. Returns size
    and SHA-256 of every file, for the manifest, and of the files `read`, which are hashed meanwhile."""
    from pipeline import models

    folder.mkdir(parents=True, exist_ok=True)
    spelled = (
        state
        if layout.name == "huggingface"
        else state.renamed({row.name: row.module for row in models.architecture_of(config).rows()})
    )
    return byte_stream.write(
        [config_of(config, layout), *files(spelled, folder, layout, step=step)], folder, workers, progress, read
    )


def config_of(config: PretrainedConfig, layout: CheckpointLayout) -> File:
    """The model's config.json, with the dtype that the files of `form` have."""
    from pipeline import models

    text = models.config_text(config, layout.dtype).encode()
    return File(CONFIG, len(text), lambda: iter([text]))


def files(state: State, folder: Path, layout: CheckpointLayout, *, step: int = 0) -> list[File]:
    """The files of `state`, in the names that the layout of `form` has."""
    if layout.name == "huggingface":
        return huggingface.files(state, layout.dtype)
    if layout.name == "universal":
        return universal.files(state, folder, step=step)
    return zero_write.files(
        state, folder, stage=layout.zero_stage, world=layout.world_size, bf16=layout.bf16, step=step
    )


BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "preprocessor_config.json",
    "generation_config.json",
)
"""Files of Hugging Face folders that say how a model is used; they go along as they are."""


def copy_beside(source: Path, folder: Path, *more: str) -> dict[str, dict]:
    """Copy what lies beside the weights of `source` into the staged `folder`. Returns size and SHA-256 by name."""
    names = [name for name in (*BESIDE, *more) if (source / name).is_file()]
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return manifest.hashes(folder, names)


def decay_groups(config: PretrainedConfig) -> tuple[Group, Group]:
    """The optimizer groups of a fresh model, decayed and not, in published names, each in the order of the module's
    `named_parameters()`: DeepSpeed's flat files name nothing, so the order is the layout."""
    from pipeline import models

    rows = {row.module: row for row in models.architecture_of(config).rows()}
    order = [rows[name] for name, _ in models.build(config, device="meta").named_parameters()]
    return Group(tuple(r.name for r in order if r.decay)), Group(tuple(r.name for r in order if not r.decay))


def fresh_groups(config: PretrainedConfig, state: State) -> tuple[Group, ...]:
    """The groups of `config`'s model, decayed and not, with the hyper-parameters of the state's two groups, else AdamW's own."""
    if len(state.groups) == 2 and all(group.hyper for group in state.groups):
        hypers = sorted((group.hyper for group in state.groups), key=lambda hyper: -hyper.get("weight_decay", 0.0))
    else:
        fresh = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]
        fresh.pop("params")
        hypers = [fresh, {**fresh, "weight_decay": 0.0}]
    return tuple(replace(group, hyper=hyper) for group, hyper in zip(decay_groups(config), hypers, strict=True))
