"""Models in float64 that compute nothing in less.

The code of many models takes norms, softmaxes and rotary positions in float32, whatever it is given: what is measured
in float64 would then be their rounding. Within a prepared model `torch.float32` is read as `torch.float64`, where a
tensor is cast or made.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

AS_THEY_SAY = (Tensor.view,)
"""Functions that read a tensor's bits as numbers of the dtype that they are given."""
LIKE_ANOTHER = (Tensor.to, Tensor.type_as)
"""Functions that cast to the dtype of another tensor."""


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Let every module of a model take casts to float32 for casts to float64. Its parameters stay in their dtype."""
    for module in model.modules():
        module.forward = _without_rounding(module.forward)
    return model


@contextmanager
def suspended() -> Iterator[None]:
    """For what happens inside a model and is not its function: its weights are read. Casts are what they say."""
    before, _here.inside = _here.inside, False
    try:
        yield
    finally:
        _here.inside = before


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
        first = args[0] if args else kwargs.get("input", kwargs.get("self"))
        if not _here.inside or function in AS_THEY_SAY or _is_less(first):
            return function(*args, **kwargs)
        if function is Tensor.float or (function in LIKE_ANOTHER and any(map(_is_single, (*args, *kwargs.values())))):
            return first.double()
        return function(*map(_wide, args), **{key: _wide(value) for key, value in kwargs.items()})


def _is_less(x: object) -> bool:
    """Whether something is a tensor whose numbers have been rounded already."""
    return isinstance(x, Tensor) and x.dtype.is_floating_point and x.dtype != torch.float64


def _is_single(x: object) -> bool:
    return isinstance(x, Tensor) and x.dtype == torch.float32


def _wide(argument: object) -> object:
    return torch.float64 if argument is torch.float32 else argument
