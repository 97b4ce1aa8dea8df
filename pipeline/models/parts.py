"""Models that are never whole in memory: what a module's parameters hold is handed over as soon as it is there.

`Place` takes a module, all of whose parameters have their numbers, and may leave them empty (training/partitioned.py
cuts them over the ranks).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PretrainedConfig, PreTrainedModel

from pipeline import models
from pipeline.models.streaming import Read, ReadModel

Place = Callable[[nn.Module], None]
"""Takes over what the parameters of a module hold, those of the modules inside included. It may be called again."""


def initialized(config: PretrainedConfig, seed: int, place: Place, attention: str = "sdpa") -> PreTrainedModel:
    """The model that `models.build` makes with this seed, the same numbers to the bit."""
    with _hollow_once_constructed(), _filled_to_initialize(place):
        model = models.build(config, seed, attention)
    place(model)
    return model


def filled(config: PretrainedConfig, read: Read, place: Place, attention: str = "sdpa") -> PreTrainedModel:
    """The model with the parameters that `read` gives by published name, in their dtype."""
    model = ReadModel(config, read, attention).skeleton()
    model.tie_weights()
    published, made = models.published_names(config), dict[nn.Parameter, nn.Parameter]()
    for path, module in _inner_first(model):
        for key, empty in list(module.named_parameters(recurse=False)):
            if empty not in made:
                made[empty] = nn.Parameter(read(published[path + key]).detach().clone())
            module.register_parameter(key, made[empty])
        place(module)
    return model


def _inner_first(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The module behind all that are inside of it, with the paths of their parameters up to these's own names."""
    for name, part in module.named_children():
        yield from _inner_first(part, f"{path}{name}.")
    yield path, module


@contextmanager
def _hollow_once_constructed() -> Iterator[None]:
    """A module's own parameters lose their memory when the module becomes part of another one. Its constructor has
    drawn its random numbers by then, and so draws those that it always has."""
    nothing = torch.zeros(())

    def hollow(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if module is not None and not _is_initialized(module):
            for parameter in module.parameters(recurse=False):
                parameter.data = nothing.expand(parameter.shape)

    handle = register_module_module_registration_hook(hollow)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _filled_to_initialize(place: Place) -> Iterator[None]:
    """A module's own parameters get their memory when transformers initialises the module. It does so behind all that
    the module consists of, whose own parameters it may still change (GPT-2's projections), and of all that consist of
    them none does."""
    initialize = PreTrainedModel._initialize_weights

    def of_module(model: PreTrainedModel, module: nn.Module, *arguments: Any) -> None:
        if not _is_initialized(module):
            for parameter in module.parameters(recurse=False):
                parameter.data = torch.empty(parameter.shape, dtype=parameter.dtype)
        initialize(model, module, *arguments)
        for part in module.children():
            place(part)

    PreTrainedModel._initialize_weights = of_module
    try:
        yield
    finally:
        PreTrainedModel._initialize_weights = initialize


def _is_initialized(module: nn.Module) -> bool:
    """Whether transformers has initialised it, or a model inside of which it is."""
    return bool(getattr(module, "_is_hf_initialized", False))
