"""Models of any size on a small machine: parameters are read when the module that owns them runs, and forgotten behind it.

Backward passes work too: `recomputed` runs each layer again when its gradient is due, so that one layer's weights are
held at a time, and every parameter's gradient is handed to `took` and dropped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init

from pipeline import models

Read = Callable[[str], Tensor]
Took = Callable[[str, Tensor], None]


def lazy(config: PretrainedConfig, read: Read, took: Took | None = None) -> PreTrainedModel:
    """A model of `config` in evaluation mode whose parameters are on the meta device until `read` (by published name) is
    asked for them; `.to(dtype)` decides the dtype they are read into. took: gets (published name, gradient)."""
    with init.no_init_weights(), _on_meta():
        model = models.build(config)
    model.config.use_cache = False  # a layer that runs twice would see its own keys
    architecture = models.architecture_of(config)
    names = {row.module: row.name for row in architecture.rows()}
    for place, module in model.named_modules():
        own = {key: f"{place}.{key}" if place else key for key, held in module._parameters.items() if held is not None}
        if own:
            sources = {key: names.get(name) or architecture.aliases[name] for key, name in own.items()}
            module.register_forward_pre_hook(partial(_load, sources=sources, read=read, took=took))
            module.register_forward_hook(_unload, always_call=True)
    return model.eval()


@contextmanager
def _on_meta() -> Iterator[None]:
    """Parameters registered meanwhile move to the meta device at once; buffers stay."""
    original = nn.Module.register_parameter

    def register(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        original(
            module,
            name,
            parameter if parameter is None else nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad),
        )

    nn.Module.register_parameter = register
    try:
        yield
    finally:
        nn.Module.register_parameter = original


def _load(module: nn.Module, given: tuple, sources: dict[str, str], read: Read, took: Took | None) -> None:
    held = {}
    for key, source in sources.items():
        empty = module._parameters[key]
        parameter = nn.Parameter(read(source).to(empty.dtype), requires_grad=took is not None)
        if took is not None:
            parameter.register_post_accumulate_grad_hook(partial(_hand_over, took=took, source=source))
        held[key], module._parameters[key] = empty, parameter
    module._lazy_held = held


def _hand_over(parameter: nn.Parameter, took: Took, source: str) -> None:
    took(source, parameter.grad)
    parameter.grad = None


def _unload(module: nn.Module, given: tuple, output: object) -> None:
    for key, empty in module._lazy_held.items():
        module._parameters[key] = empty


def recomputed(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, each layer run without a graph first and once more in the backward pass."""
    architecture = models.architecture_of(model.config)
    for place in architecture.blocks():
        block = model.get_submodule(place)
        block.forward = partial(_again, block.forward)
    return model


def _again(forward: Callable, *given: object, **named: object) -> object:
    return checkpoint(partial(forward, **named), *given, use_reentrant=True)
