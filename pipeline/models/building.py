"""Models made from a config, and filled."""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.models import drop_path, plain_attention
from pipeline.models.config_keys import DROP_PATH_RATE
from pipeline.models.registry import architecture_of, of_config
from pipeline.records.processes import choose_accelerator


def attention_of(config: PretrainedConfig, asked: str = "sdpa") -> str:
    """What a config's model attends with where it is asked for `sdpa` or `eager`: without a cap on its scores that the
    fused kernels do not have."""
    return "eager" if plain_attention.is_needed(config, of_config(config).head(config).model_class) else asked


def build(config: PretrainedConfig, seed: int = 0, attention: str = "sdpa", device: str = "cpu") -> PreTrainedModel:
    """A freshly initialised model; the same seed gives the same weights. attention: as in `attention_of`. Device 'meta'
    gives names and shapes only."""
    choose_accelerator()  # transformers imports DeepSpeed when it builds a model
    config = copy.deepcopy(config)  # transformers shares and mutates config objects
    config._attn_implementation = attention_of(config, attention)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        head = of_config(config).head(config)
        model = head.model_class(config, **head.options(config))
    if of_config(config).drops_paths:
        drop_path.install(model, architecture_of(config), getattr(config, DROP_PATH_RATE, 0.0))
    return model


def fill(
    model: PreTrainedModel, read: Callable[[str], Tensor], sources: Mapping[str, str] | None = None
) -> PreTrainedModel:
    """Copy the parameters of the model from `read(published name)`, keeping the dtype that is read. sources: of those
    that are to be read, what `read` calls them; None: all, by their names."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for row in architecture_of(model.config).rows():
            if (name := row.name if sources is None else sources.get(row.name)) is not None:
                parameters[row.module_name].data = read(name).detach().clone()
    model.tie_weights()
    return model
