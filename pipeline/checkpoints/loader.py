"""What `from_pretrained` of the installed transformers makes of a Hugging Face folder: it judges what a folder
computes, our reading of its files does not.

Loading costs no memory of its own where the files can be mapped and all tensors have one dtype: parameters are views of
the files, and a run reads them module by module. Where loading would hold copies that are larger than what growing
the largest tensor holds anyway, `from_pretrained` plans on the meta device (which keys it maps, ties, would initialise
afresh) and our reading gives the numbers.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from pipeline import checkpoints, models
from pipeline.checkpoints import QUANTISED, tying
from pipeline.checkpoints.layouts import huggingface, require_layout
from pipeline.checkpoints.state import State
from pipeline.errors import UserError, one_line
from pipeline.models.streaming import LoadedModel, ReadModel, RunnableModel

logger = logging.getLogger(__name__)

WITHOUT_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"
LARGEST_TENSOR_STATES = 3 * 3 * 4
"""Bytes of anonymous memory, for every number of the largest tensor, that an expansion may hold
(tests/tools/test_memory.py)."""


def runnable(folder: Path, state: State, config: PretrainedConfig, config_file: Path) -> RunnableModel:
    """The model in the folder: as `from_pretrained` loads it where it is a Hugging Face folder, else the weights of
    `state`. Raises UserError where `from_pretrained` does not load it whole."""
    own = ReadModel(config, lambda name: state.tensors[name].tensor().float())
    if not require_layout(folder).published_names:
        return own
    if state.unwrapped:
        logger.warning(
            f"{folder}: from_pretrained finds no weights under these names; its function is taken from what was read "
            f"without {state.unwrapped}"
        )
        return own
    loading = load(folder, state, config_file)
    require_whole(folder, loading, config)
    return LoadedModel(loading.model) if loading.filled else ReadModel(_planned(loading, config), own.read)


def _planned(loading: Loading, config: PretrainedConfig) -> PretrainedConfig:
    """The config of a model that was planned, untied where its files hold tied tensors that differ: transformers unties
    these when it has read them."""
    planned = copy.deepcopy(loading.model.config)
    return planned if models.architecture_of(config).aliases else tying.untied(planned)


def weights(folder: Path) -> Callable[[str], torch.Tensor]:
    """Reads a folder's parameters by published name, in float32, of what `runnable` makes of it. Raises UserError."""
    file = checkpoints.config_file(folder)
    state, config = checkpoints.read(folder, file)
    model = runnable(folder, state, config, file)
    names = {row.name: row.module_name for row in models.architecture_of(config).rows()}
    return lambda name: model.parameter(names[name]).float()


@dataclass(frozen=True)
class Loading:
    """What `from_pretrained` returned. filled: whether the parameters are the files' numbers, or on the meta device."""

    model: PreTrainedModel
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    filled: bool


def load(folder: Path, state: State, config_file: Path) -> Loading:
    """Call `from_pretrained` of the public class that the config names. Raises UserError with its reason where it
    refuses the folder."""
    family, config = models.read_config(config_file)
    config, head = models.as_stored(config, state.tensors), family.head(config)
    dtype, copied = _dtype(folder, state)
    filled = copied <= LARGEST_TENSOR_STATES * max(tensor.numel for tensor in state.tensors.values())
    options: dict[str, Any] = {"dtype": dtype, "device_map": None if filled else "meta", **head.options(config)}
    if not (folder / checkpoints.CONFIG).exists():
        options["generation_config"] = GenerationConfig()  # it would be looked for in the file that is missing
    try:
        with _quietly():
            model, info = head.public_class.from_pretrained(
                folder,
                config=models.as_stored(_config(config, config_file), state.tensors),
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                trust_remote_code=False,
                attn_implementation=models.attention_of(config),
                **options,
            )
    except Exception as error:  # transformers raises many kinds
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{folder}: from_pretrained of transformers does not load it ({reason})") from error
    mismatched = tuple(sorted(str(entry[0]) for entry in info["mismatched_keys"]))
    return Loading(model, tuple(sorted(info["missing_keys"])), mismatched, filled)


def _config(read: PretrainedConfig, file: Path) -> PretrainedConfig:
    """The config as the class of `read` reads it, without a quantisation: that of weights which are codes has been
    refused, and that of plain numbers dropped, which was said."""
    config = type(read).from_pretrained(file, local_files_only=True)
    if hasattr(config, QUANTISED):
        delattr(config, QUANTISED)
    return config


def _dtype(folder: Path, state: State) -> tuple[torch.dtype, int]:
    """The dtype to load in, and the bytes that are copied for it: none of tensors that have it and can be mapped."""
    dtypes = {tensor.dtype for tensor in state.tensors.values()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    mapped = huggingface.can_be_mapped(folder)
    copied = (tensor.numel for tensor in state.tensors.values() if not mapped or tensor.dtype != dtype)
    return dtype, dtype.itemsize * sum(copied)


def require_whole(folder: Path, loading: Loading, config: PretrainedConfig) -> None:
    """Raises UserError where `from_pretrained` would initialise a parameter of the model afresh, or builds another
    model than the one that was read."""
    if absent := loading.missing or loading.mismatched:
        fault = "finds no tensor for" if loading.missing else "finds a tensor of another shape for"
        raise UserError(
            f"{folder}: from_pretrained of transformers {fault} {len(absent)} of the model's parameters, such as "
            f"'{absent[0]}', and would initialise them afresh; save the model again with save_pretrained"
        )
    read, loaded = set(models.published_names(config)), dict(loading.model.named_parameters(remove_duplicate=False))
    if odd := sorted(read ^ set(loaded)):
        whose = "has a parameter that was not read" if odd[0] in loaded else "has no such parameter"
        raise UserError(f"{folder}: the model that from_pretrained of transformers makes of it {whose}: '{odd[0]}'")


def require_same(folder: Path, state: State) -> None:
    """Compare every parameter, as `from_pretrained` loads it from a folder that was written, with what it was written
    from, rounded once, byte by byte. state: in published names. Raises UserError."""
    written, config = checkpoints.read(folder)
    model = runnable(folder, written, config, folder / checkpoints.CONFIG)
    for name, published in models.published_names(config).items():
        stored = model.parameter(name)
        if not torch.equal(_bytes(state.tensors[published].tensor().to(stored.dtype)), _bytes(stored)):
            raise UserError(
                f"{folder}: '{published}' does not read back as it was written; the disk is faulty, nothing was "
                "published"
            )


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the bars and remarks of transformers, whose findings are checked here, and without its threads: writers
    are forked later."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    threads = os.environ.get(WITHOUT_THREADS)
    os.environ[WITHOUT_THREADS] = "1"
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
        if threads is None:
            del os.environ[WITHOUT_THREADS]
        else:
            os.environ[WITHOUT_THREADS] = threads
