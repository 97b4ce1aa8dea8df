"""Models in float64 that compute nothing in less.

The code of many models takes norms, softmaxes and rotary positions in float32, whatever it is given: what is measured
in float64 would then be their rounding. Within a prepared model a cast to float32 is one to float64.
"""

import threading
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softmax
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

WITH_DTYPE = (Tensor.to, Tensor.softmax, Tensor.log_softmax, torch.softmax, torch.log_softmax, softmax, log_softmax)
"""Functions that cast what they are given to a dtype that is among their arguments."""


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Let every module of a model take casts to float32 for casts to float64. Its parameters stay in their dtype."""
    for module in model.modules():
        module.forward = _without_rounding(module.forward)
    return model


def _without_rounding(forward: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(forward)
    def run(*inputs: Any, **options: Any) -> Any:
        if _here.inside:
            return forward(*inputs, **options)
        _here.inside = True
        try:
            with _WidenedCasts():
                return forward(*inputs, **options)
        finally:
            _here.inside = False

    return run


class _Here(threading.local):
    """Whether this thread is inside a prepared module: one mode is enough for all that the module consists of."""

    inside = False


_here = _Here()


class _WidenedCasts(TorchFunctionMode):
    """Casts of float64 and of whole numbers to float32 are casts to float64."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.float and _is_widened(args[0]):
            return args[0].double()
        if function in WITH_DTYPE and _is_widened(args[0]):
            args, kwargs = tuple(map(_wide, args)), {key: _wide(value) for key, value in kwargs.items()}
        return function(*args, **kwargs)


def _is_widened(x: Tensor) -> bool:
    return x.dtype == torch.float64 or not x.dtype.is_floating_point


def _wide(argument: object) -> object:
    return torch.float64 if argument is torch.float32 else argument
