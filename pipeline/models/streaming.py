"""Models of any size on a small machine: parameters are read when the module that owns them runs, and freed behind it.

Backward passes work too: `recompute_layers` runs each layer again when its gradient is due, so that one layer's weights
are in memory at a time, and every parameter's gradient is handed to `on_gradient` and dropped.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init

from pipeline import models

Read = Callable[[str], Tensor]
"""A parameter by its published name."""
OnGradient = Callable[[str, Tensor], None]
"""Gets a parameter's published name and its gradient; of a tied parameter once for each of its uses."""


def streamed_model(config: PretrainedConfig, read: Read, on_gradient: OnGradient | None = None) -> PreTrainedModel:
    """A model of `config` in evaluation mode whose parameters stay on the meta device until `read` is asked for them.

    `.to(dtype)` decides the dtype they are read into. Without `on_gradient` they need no gradient."""
    with init.no_init_weights(), init_empty_weights(include_buffers=False):
        model = models.build(config)
    model.config.use_cache = False  # a layer that runs twice would see its own keys
    architecture = models.architecture_of(config)
    published = architecture.aliases | {row.module_name: row.name for row in architecture.rows()}
    for path, module in model.named_modules():
        names = {key: f"{path}.{key}" if path else key for key, _ in module.named_parameters(recurse=False)}
        if names:
            StreamedModule(module, {key: published[name] for key, name in names.items()}, read, on_gradient)
    model.eval()
    return model


class StreamedModule:
    """Loads the parameters that a module owns itself before its forward, and unloads them behind it."""

    def __init__(self, module: nn.Module, sources: dict[str, str], read: Read, on_gradient: OnGradient | None):
        """sources: attribute of the module -> published name of the parameter."""
        self.sources, self.read, self.on_gradient = sources, read, on_gradient
        self.placeholders: dict[str, nn.Parameter | None] = {}
        module.register_forward_pre_hook(self.load)
        module.register_forward_hook(self.unload, always_call=True)

    def load(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Put what is read in the place of the parameters on the meta device."""
        for key, source in self.sources.items():
            placeholder = module.get_parameter(key)
            parameter = nn.Parameter(self.read(source).to(placeholder.dtype), self.on_gradient is not None)
            if self.on_gradient is not None:
                parameter.register_post_accumulate_grad_hook(partial(self._hand_over_gradient, source))
            self.placeholders[key] = placeholder
            module.register_parameter(key, parameter)

    def unload(self, module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        """Put the parameters on the meta device back."""
        while self.placeholders:
            module.register_parameter(*self.placeholders.popitem())

    def _hand_over_gradient(self, source: str, parameter: Tensor) -> None:
        assert self.on_gradient is not None and parameter.grad is not None
        self.on_gradient(source, parameter.grad)
        parameter.grad = None


def recompute_layers(model: PreTrainedModel) -> PreTrainedModel:
    """The same model, each layer run without a graph first and once more in the backward pass."""
    for path in models.architecture_of(model.config).blocks():
        layer = model.get_submodule(path)
        layer.forward = RecomputedForward(layer.forward)
    return model


class RecomputedForward:
    """A layer's forward that keeps its inputs alone and runs again when its gradient is due."""

    def __init__(self, forward: Callable[..., Any]):
        self.forward = forward

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return checkpoint(partial(self.forward, **options), *inputs, use_reentrant=True)
