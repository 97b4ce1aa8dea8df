"""Models of any size on a small machine: parameters are read when the module that owns them runs, and freed behind it.

Backward passes work too: `recompute_layers` runs each layer again when its gradient is due, so that one layer's weights
are in memory at a time, and every parameter's gradient is handed to `on_gradient` and dropped.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Protocol

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init

from pipeline import models
from pipeline.models import float64

LESS_THAN_FLOAT32 = (torch.float16, torch.bfloat16)
CHUNKS = "chunk_size_feed_forward"
"""The attribute of layers that cut a sequence into equal chunks, to the same numbers."""
Read = Callable[[str], Tensor]
"""A parameter by its published name."""
OnGradient = Callable[[str, Tensor], None]
"""Gets a parameter's published name and its gradient; of a tied parameter once for each of its uses."""


class RunnableModel(Protocol):
    """A model that can run module by module."""

    @property
    def config(self) -> PretrainedConfig: ...

    def skeleton(self) -> PreTrainedModel:
        """Its modules, every parameter on the meta device, every buffer real."""

    def parameter(self, name: str) -> Tensor:
        """A parameter by its name in the modules, tied or not."""


@dataclass(frozen=True)
class ReadModel:
    """The model that a config describes, with the weights that `read` gives."""

    config: PretrainedConfig
    read: Read
    attention: str = "sdpa"

    def skeleton(self) -> PreTrainedModel:
        with init.no_init_weights(), init_empty_weights(include_buffers=False):
            return models.build(self.config, attention=self.attention)

    def parameter(self, name: str) -> Tensor:
        return self.read(self._published[name])

    @cached_property
    def _published(self) -> dict[str, str]:
        return models.published_names(self.config)


class LoadedModel:
    """A model that somebody else has built and filled: `from_pretrained`, or a user. It is not changed."""

    def __init__(self, model: PreTrainedModel):
        self._model = model
        self._parameters: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
        named = copy.deepcopy(model.config)
        named.architectures = [type(model).__name__]
        self.config = models.as_stored(named, self._parameters)

    def skeleton(self) -> PreTrainedModel:
        emptied = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), False) for p in self._model.parameters()}
        here = {id(buffer): buffer.detach().to("cpu", copy=True) for buffer in self._model.buffers()}
        model: PreTrainedModel = copy.deepcopy(self._model, memo={**emptied, **here})
        model.config.__dict__ = copy.deepcopy(self.config.__dict__)  # layers share the object
        self._take_computed_buffers_back(model)
        return model

    def _take_computed_buffers_back(self, model: PreTrainedModel) -> None:
        """Give `model` in float32 what its class computes from the config and its dtype has rounded: Gemma's root of
        the width, say. In bf16 two widths' roots are no longer in their ratio, and a comparison would see that alone. A
        buffer that holds anything else than that, rounded, stays as it is."""
        held = model.state_dict().keys()
        rounded = {name: b for name, b in model.named_buffers() if b.dtype in LESS_THAN_FLOAT32 and name not in held}
        exact = dict(ReadModel(self.config, self.parameter).skeleton().named_buffers()) if rounded else {}
        for name, buffer in rounded.items():
            if name in exact and torch.equal(exact[name].to(buffer.dtype), buffer):
                buffer.data = exact[name]

    def parameter(self, name: str) -> Tensor:
        return self._parameters[name].detach().cpu()


def streamed_model(source: RunnableModel, on_gradient: OnGradient | None = None) -> PreTrainedModel:
    """The model in evaluation mode; its parameters stay on the meta device until the module that owns them runs.

    `.to(dtype)` decides the dtype they are read into. Without `on_gradient` they need no gradient."""
    model = source.skeleton()
    _compute_plainly(model)
    hand_over = GradientHandler(models.published_names(source.config), on_gradient) if on_gradient else None
    for path, module in model.named_modules():
        names = {key: f"{path}.{key}" if path else key for key, _ in module.named_parameters(recurse=False)}
        if names:
            StreamedModule(module, names, source.parameter, hand_over)
    return model.eval()


def _compute_plainly(model: PreTrainedModel) -> None:
    """Take back what a config says of the way to compute: outputs have names, and no number of tokens is refused."""
    model.config.use_cache = False  # a layer that runs twice would see its own keys
    for module in model.modules():
        if isinstance(config := getattr(module, "config", None), PretrainedConfig):
            config.return_dict = True
        if hasattr(module, CHUNKS):
            setattr(module, CHUNKS, 0)


@dataclass(frozen=True)
class GradientHandler:
    """Calls a parameter by its published name before it hands its gradient over."""

    published: dict[str, str]
    on_gradient: OnGradient

    def __call__(self, name: str, gradient: Tensor) -> None:
        self.on_gradient(self.published[name], gradient)


class StreamedModule:
    """Loads the parameters that a module owns itself before its forward, and unloads them behind it."""

    def __init__(self, module: nn.Module, sources: dict[str, str], read: Read, on_gradient: OnGradient | None):
        """sources: attribute of the module -> what `read` and `on_gradient` call the parameter."""
        self.sources, self.read, self.on_gradient = sources, read, on_gradient
        self.placeholders: dict[str, nn.Parameter | None] = {}
        module.register_forward_pre_hook(self.load)
        module.register_forward_hook(self.unload, always_call=True)

    def load(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Put what is read in the place of the parameters on the meta device."""
        for key, source in self.sources.items():
            placeholder = module.get_parameter(key)
            with float64.suspended():
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
