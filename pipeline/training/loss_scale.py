"""The loss scale of an engine in fp16, by which DeepSpeed multiplies losses so that small gradients do not vanish: it
doubles every so many steps, and is halved where gradients become infinite by it repeatedly, whose updates are left out.

DeepSpeed (0.19.8) doubles it before it divides the gradients by it, which halves those of that step. Here it rises
behind the update that was made with it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed import DeepSpeedEngine

from pipeline.errors import UserError

MOVED = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What steps change of a scale that follows; the rest of it is the config's."""
AT_MINIMUM = "loss scale already at minimum"
"""What DeepSpeed says where the scale cannot be halved any more."""


class ScaleAtMinimumError(UserError):
    """Gradients are not finite, and the scale cannot fall: their step was computed."""


class LossScale:
    """That of one engine, which has one of 1 where it trains in another precision."""

    def __init__(self, engine: DeepSpeedEngine, stage: str):
        self._optimizer, self._stage = engine.optimizer, stage
        self._own = self._scaler
        self._before = self.current
        self._update: Any = getattr(self._optimizer, "_update_scale", None)
        self._due = False
        if self._update is not None:
            self._optimizer._update_scale = self._overflow_only

    @property
    def current(self) -> float:
        return float(self._scaler.cur_scale) if self._scaler else 1.0

    @property
    def overflowed(self) -> float | None:
        """The scale by which gradients of the last step became infinite, whose update DeepSpeed has left out; None
        where it was made, or where the scale does not follow."""
        follows = self._scaler is not None and self._scaler.dynamic
        return self._before if follows and self._optimizer.overflow else None

    @contextmanager
    def of_a_step(self) -> Iterator[None]:
        """Around a step. Raises ScaleAtMinimumError where the scale would have to fall below its
        least."""
        self._before, self._due = self.current, False
        try:
            yield
            if self._due:
                self._update(False)
        except Exception as error:  # DeepSpeed raises no other kind
            if AT_MINIMUM not in str(error):
                raise
            raise ScaleAtMinimumError(
                f"stage '{self._stage}': gradients are not finite in fp16 at the least loss scale, {self.current:g}; "
                "lower schedule.peak, lengthen the warm-up, or train it in bf16"
            ) from error

    def _overflow_only(self, has_overflow: bool = False) -> None:
        """In the place of DeepSpeed's update of the scale: that for an update that is made comes behind it."""
        if has_overflow:
            self._update(True)
        self._due = not has_overflow

    def settle(self) -> None:
        """Behind a load, which has put the checkpoint's scale in the place of the engine's: one that follows goes on
        where it was, by the config's limits. One that is constant is the config's, and a checkpoint of another
        precision has none that follows."""
        loaded, own = self._scaler, self._own
        if loaded is None:
            return
        if loaded.dynamic and own.dynamic:
            vars(own).update({key: getattr(loaded, key) for key in MOVED})
            own.cur_scale = max(own.cur_scale, own.min_scale)
            own.cur_hysteresis = min(own.cur_hysteresis, own.delayed_shift)
        self._optimizer.loss_scaler = own
        self._optimizer.dynamic_loss_scale = own.dynamic

    @property
    def _scaler(self) -> Any:
        """DeepSpeed's; None where the optimizer is torch's own, or BF16_Optimizer."""
        return getattr(self._optimizer, "loss_scaler", None)
