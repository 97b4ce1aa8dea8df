"""The loss scale of an engine in fp16, by which DeepSpeed multiplies losses so that small gradients do not vanish: it
doubles every so many steps, and is halved where gradients become infinite by it, whose update is left out."""

from collections.abc import Iterator
from contextlib import contextmanager

from deepspeed import DeepSpeedEngine

from pipeline.errors import UserError

AT_MINIMUM = "loss scale already at minimum"
"""What DeepSpeed says where the scale cannot be halved any more."""


class LossScale:
    """That of one engine, which has one of 1 where it trains in another precision."""

    def __init__(self, engine: DeepSpeedEngine, stage: str):
        self._optimizer, self._stage = engine.optimizer, stage
        self._own = self._scaler
        self._before = self.current

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
        """Around a step. Raises UserError where the scale would have to fall below its least."""
        self._before = self.current
        try:
            yield
        except Exception as error:  # DeepSpeed raises no other kind
            if AT_MINIMUM not in str(error):
                raise
            raise UserError(
                f"stage '{self._stage}': gradients are not finite in fp16 at the least loss scale, {self.current:g}; "
                "lower schedule.peak, lengthen the warm-up, or train it in bf16"
            ) from error

    def settle(self) -> None:
        """Behind a load: keep the scale that was loaded where it is of the engine's kind. A checkpoint of another
        precision has none that follows."""
        if self._scaler is not None and self._scaler.dynamic != self._own.dynamic:
            self._optimizer.loss_scaler = self._own
            self._optimizer.dynamic_loss_scale = self._own.dynamic

    @property
    def _scaler(self):  # type: ignore[no-untyped-def]
        """DeepSpeed's; None where the optimizer is torch's own, or BF16_Optimizer."""
        return getattr(self._optimizer, "loss_scaler", None)
