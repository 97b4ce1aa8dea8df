"""A model that is built cut over the ranks, as ZeRO-3 holds it: no process ever has all of its weights.

DeepSpeed's own way, constructors of transformers under `deepspeed.zero.Init`, initialises some weights wrongly and
refuses others; here each module is handed to it when it has its numbers (models/parts.py).
"""

from collections.abc import Mapping
from functools import partial

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pipeline import models
from pipeline.config.schema import TrainStage
from pipeline.models import parts
from pipeline.models.streaming import Read
from pipeline.records.processes import give_back_freed_memory
from pipeline.training.deepspeed_config import deepspeed_config
from pipeline.training.precisions import WEIGHTS


def initialized(config: PretrainedConfig, seed: int, stage: TrainStage, attention: str = "sdpa") -> PreTrainedModel:
    """A freshly initialised model, the numbers those of `models.build`. To be called by all ranks."""
    return _on_device(parts.initialized(config, seed, _cutter(stage), attention))


def filled(config: PretrainedConfig, read: Read, stage: TrainStage, attention: str = "sdpa") -> PreTrainedModel:
    """The model with the parameters that `read` gives by published name. To be called by all ranks."""
    return _on_device(parts.filled(config, read, _cutter(stage), attention))


def overwritten(model: PreTrainedModel, read: Read, sources: Mapping[str, str]) -> PreTrainedModel:
    """The model with the parameters that `read` gives, each made whole for that. sources: what `read` calls them, by
    their published names. To be called by all ranks."""
    parameters = dict(model.named_parameters())
    for row in models.architecture_of(model.config).rows():
        if row.name in sources:
            parameter = parameters[row.module_name]
            with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                parameter.copy_(read(sources[row.name]))
    return model


def to_load(config: PretrainedConfig, stage: TrainStage, attention: str = "sdpa") -> PreTrainedModel:
    """The model with zeros for weights, for an engine to load a checkpoint into. To be called by all ranks."""
    architecture = models.architecture_of(config)
    shapes = {row.name: architecture.shape(row) for row in architecture.rows()}
    return filled(config, lambda name: torch.zeros(shapes[name]), stage, attention)


def _cutter(stage: TrainStage) -> parts.Place:
    return partial(_cut, deepspeed_config(stage, dist.get_world_size()), WEIGHTS[stage.precision])


def _cut(config: dict[str, object], dtype: torch.dtype, module: nn.Module) -> None:
    """Leave each rank its share of the parameters that are whole."""
    whole = [parameter for parameter in module.parameters() if not hasattr(parameter, "ds_id")]
    for parameter in whole:
        parameter.data = parameter.data.to(dtype)
    if whole:
        deepspeed.zero.Init(module=module, config_dict_or_path=config)
        give_back_freed_memory()


def _on_device(model: PreTrainedModel) -> PreTrainedModel:
    """With its buffers where it computes; DeepSpeed moves parameters alone."""
    device = torch.device(get_accelerator().current_device_name())
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), name not in module._non_persistent_buffers_set)
    return model
