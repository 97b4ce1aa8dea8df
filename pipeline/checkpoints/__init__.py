"""Checkpoints of any layout behind one `State`: `locate`, `read`, `write`.

The models are imported where a config is read: importing every family takes longer than resharding a small checkpoint.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.checkpoints import foreign, manifest, names, narrowing, poolers, publish, sidecars, tying, wrappers
from pipeline.checkpoints.layouts import NATIVE, CheckpointLayout, Layout, detect_layout, require_layout
from pipeline.checkpoints.relative_paths import is_file_name
from pipeline.checkpoints.serialization.byte_stream import OutputFile
from pipeline.checkpoints.serialization.writer_pool import NOTHING, write_files
from pipeline.checkpoints.sidecars import Sidecars
from pipeline.checkpoints.state import Group, State
from pipeline.checkpoints.tensors import ReshapedTensor
from pipeline.errors import UserError
from pipeline.optim.optimizers import OptimizerSpec
from pipeline.optim.parameter_groups import GroupRule
from pipeline.records.file_hashes import FASTEST, Algorithm, FileRecord
from pipeline.records.run_folder import read_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from pipeline.models.architecture import Architecture

logger = logging.getLogger(__name__)

CONFIG, QUANTISED = "config.json", "quantization_config"
FRESH_RATE = 1e-3
"""torch's default rate of an optimizer: what a script that sets none starts with."""


def locate(path: Path) -> Path:
    """The tag folder that `path` means: itself, the newest complete checkpoint in it, or of a stage. Raises
    UserError."""
    if path.is_file():
        raise UserError(f"{path}: is a file; name the folder in which it lies")
    if not path.is_dir():
        raise UserError(f"{path}: {foreign.absent(path)}")
    if detect_layout(path):
        return path
    for folder in (path / "checkpoints", path):
        if newest := publish.newest(folder):
            logger.debug(f"{path}: the newest checkpoint is {newest.name}")
            return newest
    if (path / "latest").exists():  # a foreign DeepSpeed folder
        tag = (path / "latest").read_text(encoding="utf-8", errors="replace").strip()
        if not tag or tag.startswith("."):
            raise UserError(f"{path / 'latest'}: names no tag ('{tag}'); name the tag folder itself")
        return locate(path / tag)
    stages = {stage.parent.name: read_json(stage) for stage in sorted(path.glob("*/stage.json"))}
    origins = [facts.get("origin") for facts in stages.values() if facts.get("kind") == "expand"]
    if len(grown_from := [name for name in stages if name in origins]) == 1:
        return locate(path / grown_from[0])  # a run: the stage that its one expansion grows from
    if (path / manifest.NAME).exists():
        manifest.read(path)  # names the file that is gone
    hint = f"name one of its stages: {', '.join(stages)}" if stages else foreign.explain(path)
    raise UserError(f"{path}: {hint}")


def default_layout(source: Path) -> Layout:
    """A Hugging Face source gives a Hugging Face result, any other native ZeRO."""
    layout = require_layout(locate(source))
    return layout if layout.published_names else NATIVE


def config_file(folder: Path, config: Path | None = None) -> Path:
    """Where the model's config lies: where the user says, else in the tag folder, else above it, which is said. Raises
    UserError when it is missing."""
    place = config or folder
    place = place / CONFIG if place.is_dir() else place
    if not config and (above := sidecars.above(folder)):
        logger.warning(f"{folder}: holds no {CONFIG}; read is the one of the folder above it, {above / CONFIG}")
        return above / CONFIG
    if config and not place.exists():
        raise UserError(f"{config}: no such config")
    if not place.exists():
        without = f"holds no {CONFIG}; name the source's config with --source-config"
        raise UserError(f"{folder}: {foreign.adapter(folder) or foreign.adapter(folder.parent) or without}")
    return place


def holds_known_model(folder: Path) -> bool:
    """Whether the folder holds the config of a supported family."""
    if not (folder / CONFIG).exists():
        return False
    from pipeline import models

    try:
        models.read_config(folder / CONFIG)
    except UserError:
        return False
    return True


def raw(folder: Path) -> State:
    """The state of a tag folder in the names of its files, whatever model it is; no config is needed. Raises
    UserError."""
    content, layout = manifest.read_if_any(folder), require_layout(folder)
    state = layout.read(folder)
    if not state.tensors:
        raise UserError(f"{folder}: its files hold no tensor; copy the checkpoint again")
    if not layout.published_names:  # those are the models' own, and never the names of files
        _require_plain_names(folder, state)
    state.require_coherent(folder)
    slots = ", ".join(slot for slot, tensors in state.slots.items() if tensors) or "none"
    logger.debug(f"{folder}: {layout.title}, {len(state.tensors)} tensors, step {state.step}, optimizer state: {slots}")
    return replace(state, provenance=content.provenance if content else manifest.UNKNOWN_ORIGIN)


def _require_plain_names(folder: Path, state: State) -> None:
    """Universal files call folders by the parameters' names, which a file says."""
    if odd := [name for name in (*state.tensors, *state.buffers) if not is_file_name(name)]:
        raise UserError(f"{folder}: a tensor is called {odd[0]!r}, which is a path and no name of a module's tensor")


def read(folder: Path, config: Path | None = None) -> tuple[State, PretrainedConfig]:
    """The state of a tag folder in published names, and its model's config: an untied one where the files hold tied
    tensors that differ, of a bare encoder without a pooler where they hold none. What the files hold beside the model
    is left behind, its optimizer state too. Raises UserError.

    `config`: a config.json (or a folder with one) for a checkpoint that holds none.
    """
    from pipeline import models

    family, stated = models.read_config(config_file(folder, config))
    state, prefix = _unwrapped(folder, raw(folder)), family.heads[0].model_class.base_model_prefix
    _say_what_lies_below(folder)
    model_config = models.as_stored(stated, names.unprefixed(state.tensors, prefix))
    architecture = models.architecture_of(model_config)
    decided, aliases = poolers.remarks(stated, model_config), architecture.aliases
    if differ := tying.differing(state, architecture, prefix):
        model_config = tying.untied(model_config)
        architecture = models.architecture_of(model_config)
        decided[tying.KEY] = tying.remark(differ, aliases)
    state = _named(folder, replace(state, decided_by_files=decided), architecture, prefix)
    if require_layout(folder).published_names:
        _require_numbers(folder, state, model_config)
    state = narrowing.said(folder, state)
    return _shaped(folder, tying.completed(state, aliases) if differ else state, architecture), model_config


def _unwrapped(folder: Path, state: State) -> State:
    """The state without what wrappers put before names, which is said."""
    if not (found := wrappers.found(state.tensors)):
        return state
    prefixes = ", ".join(map(repr, found))
    logger.warning(f"{folder}: the names of its tensors are read without {prefixes}")
    return replace(state.renamed(wrappers.unwrapped(state.tensors)), unwrapped=prefixes)


def _require_numbers(folder: Path, state: State, config: PretrainedConfig) -> None:
    """Drop what the config says of a quantisation that the weights do not have, and say it. Raises UserError where they
    are codes and no numbers."""
    stated = getattr(config, QUANTISED, None)
    method = stated.get("quant_method", "an unnamed method") if isinstance(stated, dict) else stated
    smallest = 2 if stated else 1  # bytes of a number; what a quantisation makes fp8 has scales beside it
    dtypes = {name: tensor.dtype for name, tensor in state.tensors.items()}
    if codes := [name for name, dtype in dtypes.items() if not dtype.is_floating_point or dtype.itemsize < smallest]:
        by = f"quantised by {method} ({QUANTISED} of its {CONFIG}): " if stated else ""
        raise UserError(
            f"{folder}: {by}'{codes[0]}' holds {str(dtypes[codes[0]]).removeprefix('torch.')} codes and no weights; "
            "use the model's original weights, or load it with transformers, call dequantize() and save it again"
        )
    if stated is not None:
        delattr(config, QUANTISED)
        logger.warning(f"{folder}: its weights are plain numbers; {QUANTISED} of its {CONFIG} ({method}) is dropped")


def _say_what_lies_below(folder: Path) -> None:
    """A Trainer saves weights in the training dtype beside a folder with DeepSpeed's own files."""
    if said := below(folder):
        logger.warning(f"{folder}: {said}")


def below(folder: Path) -> str | None:
    """Of a folder with Hugging Face files and, below it, DeepSpeed's of the same step, what is not read, in words."""
    if not require_layout(folder).published_names or not (folder / "latest").is_file():
        return None
    tag = folder / (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()
    if tag.parent != folder or tag == folder or not detect_layout(tag):
        return None
    return (
        f"read are its Hugging Face files; optimizer state, step and weights in fp32 lie in {tag.name}, "
        f"name {tag} to take those"
    )


def _named(folder: Path, state: State, architecture: Architecture, prefix: str) -> State:
    """The state in published names. Raises UserError for two tensors of one name, of which one would be lost."""
    published = names.published(state.tensors, architecture, prefix)
    first: dict[str, str] = {}
    for name, parameter in published.items():
        if first.setdefault(parameter, name) != name:
            raise UserError(f"{folder}: '{first[parameter]}' and '{name}' are both '{parameter}'; remove one of them")
    left_behind = tuple(names.left_behind(state.tensors, architecture, prefix))
    state = state.only(published).renamed(published)
    return replace(state, aliases=architecture.aliases, left_behind=left_behind)


def _shaped(folder: Path, state: State, architecture: Architecture) -> State:
    """Tensors and slots in the architecture's order and shapes; names and sizes must be the architecture's, or what
    follows is shifted silently. DeepSpeed's universal files of stage 3 are flat: they get their shape here."""
    shapes = {param.name: architecture.shape(param) for param in architecture.rows()}
    _require_names(folder, set(state.tensors), set(shapes), architecture)
    hint = "is it the right config?"
    for name, shape in shapes.items():
        stored = state.tensors[name].shape
        if stored != shape and stored != (math.prod(shape),):
            raise UserError(f"{folder}: '{name}' has shape {stored}, the config says {shape}; {hint}")
    return replace(
        state,
        tensors={name: ReshapedTensor(state.tensors[name], shape) for name, shape in shapes.items()},
        slots={
            slot: {name: ReshapedTensor(tensor, shapes[name]) for name, tensor in tensors.items()}
            for slot, tensors in state.slots.items()
        },
    )


def _require_names(folder: Path, stored: set[str], sought: set[str], architecture: Architecture) -> None:
    """Raises UserError where the files hold other tensors than the model has."""
    missing, extra = sorted(sought - stored), sorted(stored - sought)
    if renamed := next((name for name, read in architecture.doubled.items() if missing == [read]), None):
        raise UserError(
            f"{folder}: '{missing[0]}' is missing; transformers 4, which saves none, adds '{renamed}' in its place, "
            "transformers 5 zeros; copy that one under this name too"
        )
    if adapters := [name for name in extra if ".lora_" in name]:
        raise UserError(
            f"{folder}: holds PEFT adapters ('{adapters[0]}') that are not merged into the model; load them with PEFT, "
            "then merge_and_unload() and save_pretrained(OUT)"
        )
    if missing:
        found = f", and its files hold '{extra[0]}' instead" if extra else ""
        raise UserError(
            f"{folder}: {len(missing)} tensors of the config's model are missing, such as '{missing[0]}'{found}; is it "
            "the right config? If fresh ones will do, load the folder with from_pretrained and save it again"
        )
    if extra:
        raise UserError(
            f"{folder}: {len(extra)} tensors belong to no part of the config's model, such as '{extra[0]}'; is it the "
            "right config? If they can go, load the folder with from_pretrained and save it again"
        )


def write(
    state: State,
    config: PretrainedConfig,
    folder: Path,
    layout: CheckpointLayout,
    *,
    workers: int = 1,
    read: Mapping[Path, Algorithm] = NOTHING,
    algorithm: Algorithm = FASTEST,
) -> tuple[dict[str, FileRecord], dict[Path, FileRecord]]:
    """Write `state` (published names) into the staged tag folder in `layout`, config.json with it. Returns the records
    of every file, for the manifest, and of the files `read`, which are hashed meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_files(output_of(state, config, folder, layout), folder, workers, read, algorithm)


def output_of(state: State, config: PretrainedConfig, folder: Path, layout: CheckpointLayout) -> list[OutputFile]:
    """The files of `state` (published names) in `layout`, and config.json. folder: where they are to be written."""
    return [config_of(config, layout), *files(_spelled(state, config, layout.kind), folder, layout)]


def _spelled(state: State, config: PretrainedConfig, layout: Layout) -> State:
    """The state under the names that the layout stores."""
    from pipeline import models

    if layout.published_names:
        return state
    return state.renamed(models.architecture_of(config).module_names)


def config_of(config: PretrainedConfig, layout: CheckpointLayout) -> OutputFile:
    """The model's config.json, with the dtype of the layout's files."""
    return OutputFile.of(CONFIG, config_bytes(config, layout))


def config_bytes(config: PretrainedConfig, layout: CheckpointLayout) -> bytes:
    """Its content."""
    from pipeline import models

    return models.config_text(config, layout.dtype).encode()


def files(state: State, folder: Path, layout: CheckpointLayout) -> list[OutputFile]:
    """The files of `state`, in the names that the layout stores."""
    return layout.kind.files(state, folder, layout)


def parameter_order(config: PretrainedConfig) -> list[str]:
    """The published names of a model's parameters in the order of the module's `named_parameters()`."""
    from pipeline import models

    published = {param.module_name: param.name for param in models.architecture_of(config).rows()}
    return [published[name] for name, _ in models.build(config, device="meta").named_parameters()]


def fresh_groups(config: PretrainedConfig, optimizer: OptimizerSpec) -> tuple[Group, ...]:
    """The groups in which a fresh `optimizer` trains a model, in published names."""
    from pipeline import models
    from pipeline.models.optimizer_groups import optimizer_groups

    architecture = models.architecture_of(config)
    published = {param.module_name: param.name for param in architecture.rows()}
    modules = {name: module for module, name in published.items()}
    sorted_in = optimizer_groups(architecture, (modules[name] for name in parameter_order(config)), optimizer)
    return tuple(
        Group(tuple(published[name] for name in names), fresh_hyper(optimizer, rule))
        for rule, names in sorted_in.items()
    )


def fresh_hyper(optimizer: OptimizerSpec, rule: GroupRule) -> dict[str, Any]:
    """What a group of a fresh optimizer says."""
    return optimizer.fresh(rule, lr=FRESH_RATE * rule.rate)


__all__ = [
    "CONFIG",
    "CheckpointLayout",
    "Group",
    "Layout",
    "Sidecars",
    "State",
    "config_file",
    "config_of",
    "default_layout",
    "detect_layout",
    "files",
    "fresh_groups",
    "fresh_hyper",
    "holds_known_model",
    "locate",
    "parameter_order",
    "raw",
    "read",
    "write",
]
