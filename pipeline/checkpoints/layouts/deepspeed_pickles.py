"""The objects that DeepSpeed pickles into its checkpoints, beside tensors and plain values.

Reading needs none of DeepSpeed's code: stand-ins take the place of its classes, and nothing else is let in. Writing
makes the real ones, for DeepSpeed unpickles what it reads; only then it is imported, which takes seconds."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from pipeline.records.processes import choose_accelerator


class LossScaler:
    """Stands for DeepSpeed's classes of that name: its values become attributes, and nothing is computed."""


@dataclass
class FragmentAddress:
    """Stands for DeepSpeed's `fragment_address`: `numel` elements from `start`."""

    numel: int
    start: int


STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (LossScaler, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (LossScaler, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (FragmentAddress, "deepspeed.utils.tensor_fragment.fragment_address"),
]
"""All that DeepSpeed pickles; anything else in a checkpoint is refused. Its stages are an enumeration of integers."""


def deepspeed_version() -> str:
    """The installed release, which its checkpoints name."""
    return version("deepspeed")


def loss_scaler() -> Any:
    """A static loss scale of 1."""
    choose_accelerator()
    from deepspeed.runtime.fp16.loss_scaler import LossScaler as Real

    return Real(1.0)


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
