"""Leaving an update out, under every ZeRO stage, and the norm of its gradients.

DeepSpeed takes the gradients' norm, clips, and calls the optimizer once for each of its groups, then clears the
gradients. Where the optimizer's own step does nothing, master weights, moments and step counts stay as they are, and
the weights that DeepSpeed copies from the master are what they were. Where the norm is not finite, most of its
optimizers leave the update out themselves and do not call the optimizer: all but ZeRO-0 in fp32, and ZeRO-1 and 2 where
they sum bf16 gradients without BF16_Optimizer (0.19.8).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
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
        self.inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
        self._step = self.inner.step
        self.inner.step = self._unless_refused
        self._plain = self.inner is engine.optimizer  # ZeRO-0 in fp32, where DeepSpeed keeps no norm
        self._measured: Tensor | None = None
        engine.clip_fp32_gradients = self._clip

    def ask(self, question: Callable[[], bool] | None) -> None:
        """What is asked before the next update, once for all groups; None: nothing, it is made."""
        self._question, self._answer, self._measured = question, None, None

    def settle(self) -> None:
        """Behind a step: an update that DeepSpeed has left out itself, without a call of the optimizer, leaves no trace
        either, where it was asked for."""
        if self._question is not None and self._answer is None:
            self._leave_out()

    @property
    def norm(self) -> Tensor:
        """The global norm of the gradients before clipping, of the last update, 0-d, on the device or, where DeepSpeed
        has it as a number, on the host; infinite or NaN where one of them is. To be asked behind an update, or from
        its question."""
        norm = self._measured if self._plain else self._engine.optimizer._global_grad_norm
        return torch.as_tensor(norm).detach().reshape(())

    def told(self, norm: float) -> float | None:
        """What of `norm`, on the host, is the norm of gradients: all of it."""
        return norm

    def _unless_refused(self, *arguments: Any, **named: Any) -> Any:
        if self._plain and self._measured is None:
            self._measured = self._global_norm()
        if self._question is None:
            return self._step(*arguments, **named)
        if self._answer is None:
            self._answer = self._question()
            if self._answer:
                self._leave_out()
        return None if self._answer else self._step(*arguments, **named)

    def _global_norm(self) -> Tensor:
        """Of the reduced gradients, which every rank has: the mean over ranks, since devices of different kinds need
        not round alike."""
        gradients = [parameter.grad for parameter in self._engine.module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) / dist.get_world_size()
        dist.all_reduce(norm)
        return norm

    def _leave_out(self) -> None:
        """Undo what DeepSpeed has done before it called the optimizer for the first of its groups: nothing."""

    def _clip(self) -> None:
        """DeepSpeed's own clipping in ZeRO-0 and fp32, whose norm it forgets."""
        engine = self._engine
        self._measured = clip_grad_norm_(engine.module.parameters(), engine.gradient_clipping(), mpu=engine.mpu)
