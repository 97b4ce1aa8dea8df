"""The objects that DeepSpeed pickles into its checkpoints, beside tensors and plain values.

Reading needs none of DeepSpeed's code: stand-ins take the place of its classes, and nothing else is let in. Writing
makes the real ones, for DeepSpeed unpickles what it reads; only then it is imported, which takes seconds."""

import builtins
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch

from pipeline.records.processes import choose_accelerator


class LossScaler:
    """Stands for DeepSpeed's class of that name: its values become attributes, and nothing is computed."""


class DynamicLossScaler(LossScaler):
    """Stands for the scaler that follows overflows."""


class Opaque:
    """Stands for an object of any other class: what it is made from is dropped, and none of its code is imported."""

    name: ClassVar[str]

    def __new__(cls, *_: object) -> "Opaque":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class OpaqueDict(Opaque):
    """For a class whose objects take items as they are unpickled, which torch lets an OrderedDict do."""

    def __new__(cls, *_: object) -> Any:
        held: OrderedDict[Any, Any] = OrderedDict()
        vars(held)[cls.name] = super().__new__(cls)
        return held


class OpaqueList(Opaque):
    """The same of a class whose objects are appended to, which torch lets a list do."""

    def __new__(cls, *_: object) -> Any:
        return [super().__new__(cls)]


@dataclass
class FragmentAddress:
    """Stands for DeepSpeed's `fragment_address`: `numel` elements from `start`."""

    numel: int
    start: int


StandIn = Callable[..., Any] | tuple[Callable[..., Any], str]
STAND_INS: list[StandIn] = [
    (LossScaler, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (DynamicLossScaler, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (FragmentAddress, "deepspeed.utils.tensor_fragment.fragment_address"),
]
"""All that DeepSpeed pickles; what else is let in is `Opaque`. Its stages are an enumeration of integers."""


def opaque_stand_ins(path: Path, kinds: Mapping[str, type[Opaque]]) -> list[StandIn]:
    """Stand-ins for what a file names beside these and what torch lets in. Functions of Python itself, which pickles
    that attack begin with, have none. kinds: of the classes, by their names, that are no mere `Opaque`."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    return [(_opaque(name, kinds.get(name, Opaque)), name) for name in names if not _is_builtin_function(name)]


def _opaque(name: str, kind: type[Opaque]) -> type[Opaque]:
    module, _, own = name.rpartition(".")
    return type(own, (kind,), {"name": name, "__module__": module, "__qualname__": own})


def opaque_kind(error: Exception) -> tuple[str, type[Opaque]] | None:
    """The class that torch's unpickler says it would not fill, and the stand-in that it fills."""
    found = FILLED.search(str(error))
    return (found[2], OpaqueDict if found[1].startswith("SETITEM") else OpaqueList) if found else None


def _is_builtin_function(full_name: str) -> bool:
    module, _, name = full_name.rpartition(".")
    return module in ("builtins", "__builtin__") and not isinstance(getattr(builtins, name, None), type)


FILLED = re.compile(r"Can only (SETITEMS?|append|extend)\b.* but got <class '([^']+)'>")
FORCED, FORBIDDEN = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
"""torch's variables that decide for every `torch.load` of a process, whatever its caller asks for."""


def open_safely_from_here_on() -> None:
    """From here on every `torch.load` of this process, DeepSpeed's own too (it asks for pickles to be executed), lets
    in tensors, plain values and the classes of `STAND_INS`, which are DeepSpeed's own then."""
    choose_accelerator()
    os.environ.pop(FORBIDDEN, None)
    os.environ[FORCED] = "1"
    names = (stand_in[1] for stand_in in STAND_INS if isinstance(stand_in, tuple))
    modules = ((name.rpartition(".")[0], name.rpartition(".")[2]) for name in names)
    torch.serialization.add_safe_globals([getattr(import_module(module), name) for module, name in modules])


def deepspeed_version() -> str:
    """The installed release, which its checkpoints name."""
    return version("deepspeed")


def loss_scaler(stored: LossScaler | None = None) -> Any:
    """DeepSpeed's own object with the values of a stand-in; None: a static loss scale of 1."""
    choose_accelerator()
    from deepspeed.runtime.fp16 import loss_scaler as real

    if stored is None:
        return real.LossScaler(1.0)
    kind = real.DynamicLossScaler if isinstance(stored, DynamicLossScaler) else real.LossScaler
    scaler = kind.__new__(kind)
    vars(scaler).update(vars(stored))
    return scaler


def zero_stage(number: int) -> Any:
    """DeepSpeed's enumeration of stages."""
    choose_accelerator()
    from deepspeed.runtime.zero.config import ZeroStageEnum

    return ZeroStageEnum(number)


def fragment(length: int, offset: int) -> Any:
    """Where a parameter lies in a flat tensor."""
    choose_accelerator()
    from deepspeed.utils.tensor_fragment import fragment_address

    return fragment_address(length, offset)
