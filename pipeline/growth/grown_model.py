"""The target of a learned growth as a model that trains: its parameters are the coefficients, its weights are made from
the source's when a layer runs, and made again when its gradient is due.

    coefficients -> maps and mixtures -> W* = sum_j c_j E W_j R^T + N -> layer i (inside its activation checkpoint)

So memory holds the source, N, the coefficients with their optimizer, the target's activations at the borders of its
layers, and the weights of the layer that runs.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

from pipeline import models
from pipeline.growth.execute import PlanExecutor, Read
from pipeline.growth.method import ExpansionOptions, GrowthModule
from pipeline.growth.plan import GrowthPlan, TensorPlan, build_plan
from pipeline.models.streaming import ReadModel

Make = Callable[[], dict[str, Tensor]]
"""Makes the weights of a module, by their names in it."""


class GrownModel(nn.Module):
    """Called as the target is. config: of the target. coefficients: the method's module. computing: the target's
    modules, which have no weights of their own, hidden from the optimizer."""

    def __init__(
        self,
        configs: tuple[PretrainedConfig, PretrainedConfig],
        options: ExpansionOptions,
        coefficients: GrowthModule,
        source: Mapping[str, Tensor],
        attention: str = "sdpa",
    ):
        """configs: of source and target. source: its weights by published name; they stay as they are. attention: what
        the target computes with, `sdpa` or `eager`."""
        super().__init__()
        small, self.config = configs
        assert isinstance(coefficients, nn.Module), "a learned method supplies an nn.Module"
        self.coefficients, self._options = coefficients, options
        self._architectures = models.architecture_of(small), models.architecture_of(self.config)
        self._init_std = models.initializer_range(self.config)
        plan = self.plan()
        self._source = _Fixed(self, "source", source)
        self._noise = _Fixed(self, "noise", dict(_noise(plan)))
        self._layers = {path: GrownLayer() for path in plan.target.blocks()}
        self._outside, self._inside = self._placed(models.published_names(self.config))
        self.computing = (self._with_layers(ReadModel(self.config, source.__getitem__, attention).skeleton()),)

    def plan(self) -> GrowthPlan:
        """The growth by the coefficients as they are now, differentiable in them."""
        return build_plan(*self._architectures, self._options, self._init_std, module=self.coefficients)

    def _with_layers(self, skeleton: PreTrainedModel) -> PreTrainedModel:
        """The target's modules without weights, its layers those that make their own."""
        skeleton.config.use_cache = False  # a layer that runs twice would see its own keys
        for path, layer in self._layers.items():
            parent, _, name = path.rpartition(".")
            layer.block = (skeleton.get_submodule(path),)
            skeleton.get_submodule(parent)._modules[name] = layer
        return skeleton

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The target's layers, which have no weights of their own."""
        return tuple(block for layer in self._layers.values() for block in layer.block)

    def _hidden(self) -> Iterator[nn.Module]:
        """The target's modules, those of its layers behind the others."""
        yield from self.computing
        yield from self.layers

    def train(self, mode: bool = True) -> "GrownModel":
        super().train(mode)
        for module in self._hidden():
            module.train(mode)
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "GrownModel":
        """What moves the coefficients takes along the buffers of the target, in their own dtype."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = next(self.parameters()).device
        for module in (each for hidden in self._hidden() for each in hidden.modules()):
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
        return self

    def forward(self, **inputs: Tensor) -> Any:
        """The target's outputs."""
        executor = _Executor(self.plan(), self._noise, next(self.coefficients.parameters()).dtype)
        for path, layer in self._layers.items():
            layer.make = executor.maker(self._inside[path], self._source.rows)
        return functional_call(self.computing[0], executor.maker(self._outside, self._source.rows)(), kwargs=inputs)

    def _placed(self, published: Mapping[str, str]) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
        """Published names by those in the modules: of what lies outside of layers, and of each layer, in it."""
        outside, inside = dict(published), {path: dict[str, str]() for path in self._layers}
        for place in published:
            if path := next((path for path in self._layers if place.startswith(path + ".")), None):
                inside[path][place.removeprefix(path + ".")] = outside.pop(place)
        return outside, inside


class GrownLayer(nn.Module):
    """A layer of the target whose weights are made when it runs. block: the layer, hidden from the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.block: tuple[nn.Module, ...] = ()
        self.make: Make = dict

    def __getattr__(self, name: str) -> Any:
        """What the model asks of its layers: which kind of attention one has."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["block"][0], name)

    def forward(self, *arguments: Any, **named: Any) -> Any:
        make = self.make  # of this pass, for the one that is made again

        def run(*arguments: Any) -> Any:
            return functional_call(self.block[0], make(), arguments, named)

        return checkpoint(run, *arguments, use_reentrant=False) if torch.is_grad_enabled() else run(*arguments)


class _Fixed:
    """Tensors of a module by any name, that move and change their dtype with it and are never saved or trained."""

    def __init__(self, owner: nn.Module, kind: str, tensors: Mapping[str, Tensor]):
        self._owner = (owner,)
        self._keys = {name: f"{kind}_{number}" for number, name in enumerate(tensors)}
        for name, key in self._keys.items():
            owner.register_buffer(key, tensors[name].detach().float(), persistent=False)

    def __contains__(self, name: str) -> bool:
        return name in self._keys

    def rows(self, name: str, rows: range) -> Tensor:
        tensor: Tensor = getattr(self._owner[0], self._keys[name])
        return tensor[rows.start : rows.stop]


def _noise(plan: GrowthPlan) -> Iterator[tuple[str, Tensor]]:
    """N of every tensor that has one. It does not depend on the coefficients."""
    executor = PlanExecutor(plan, torch.float32)
    for each in plan.tensors:
        if each.noise:
            yield each.target, executor.noise(each, range(each.shape[0]))


class _Executor(PlanExecutor):
    """Grows with noise that was drawn before."""

    def __init__(self, plan: GrowthPlan, noise: _Fixed, dtype: torch.dtype):
        super().__init__(plan, dtype)
        self._drawn = noise
        self._by_target = {each.target: each for each in plan.tensors}

    def noise(self, tensor_plan: TensorPlan, rows: range) -> Tensor:
        return self._drawn.rows(tensor_plan.target, rows).to(self.dtype)

    def maker(self, names: Mapping[str, str], read: Read) -> Make:
        """names: in a module -> of the target's tensors; several for a tied one, which is made once."""

        def make() -> dict[str, Tensor]:
            made = {target: self.tensor(self._by_target[target], read) for target in dict.fromkeys(names.values())}
            return {name: made[target] for name, target in names.items()}

        return make
