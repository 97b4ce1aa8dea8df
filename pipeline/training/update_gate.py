"""Leaving an update out, under every ZeRO stage.

DeepSpeed takes the gradients' norm, clips, and calls the optimizer once for each of its groups, then clears the
gradients. Where the optimizer's own step does nothing, master weights, moments and step counts stay as they are, and
the weights that DeepSpeed copies from the master are what they were.
"""

from collections.abc import Callable
from typing import Any

from deepspeed import DeepSpeedEngine
from deepspeed.runtime.utils import clip_grad_norm_
from torch import Tensor

Refuses = Callable[[float, float | None], bool]
"""Whether an update of this loss and gradient norm is to be left out; the same on every rank."""


class UpdateGate:
    """Stands before the step of the optimizer inside a DeepSpeed engine, and knows the gradient norm."""

    def __init__(self, engine: DeepSpeedEngine):
        self._engine = engine
        self._question: Callable[[], bool] | None = None
        self._answer: bool | None = None
        inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
        self._step = inner.step
        inner.step = self._unless_refused
        self._clipped: Tensor | None = None
        engine.clip_fp32_gradients = self._clip

    def ask(self, question: Callable[[], bool] | None) -> None:
        """What is asked before the next update, once for all groups; None: nothing, it is made."""
        self._question, self._answer, self._clipped = question, None, None

    @property
    def norm(self) -> Tensor | float | None:
        """The global norm of the gradients before clipping, of the last update, where DeepSpeed has it: on the device,
        without waiting. None where nothing measures it (ZeRO-0 in fp32 without clipping)."""
        optimizer = self._engine.optimizer
        norm: Tensor | float | None = getattr(optimizer, "_global_grad_norm", self._clipped)
        return norm

    def _unless_refused(self, *arguments: Any, **named: Any) -> Any:
        if self._question is None:
            return self._step(*arguments, **named)
        if self._answer is None:
            self._answer = self._question()
        return None if self._answer else self._step(*arguments, **named)

    def _clip(self) -> None:
        """DeepSpeed's own clipping in ZeRO-0 and fp32, whose norm it forgets."""
        engine = self._engine
        self._clipped = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping(), mpu=engine.mpu)
