"""How long devices take for a training that is planned, at a stated share of their peak."""

from dataclasses import dataclass
from typing import Self

from pipeline.accounting.estimate import DeviceHours
from pipeline.config.number_formats import BY_DEFAULT, MatmulPrecision
from pipeline.errors import UserError, nearest
from pipeline.training.hardware import DATA_SHEETS, data_sheet

TERA, SECONDS = 1e12, 3600


@dataclass(frozen=True)
class Devices:
    """The device that a plan is made for. mfu: model FLOPs per second as a share of its peak; tflops: that peak in
    TFLOP/s, where it is given; name: else the device's, in the table of data sheets."""

    mfu: float
    tflops: float | None
    name: str | None

    @classmethod
    def asked(cls, mfu: float | None, tflops: float | None, name: str | None) -> Self | None:
        """By the options of a command; None where there are none. Raises UserError for some without the others, and for
        an unknown device."""
        if mfu is None and tflops is None and name is None:
            return None
        if mfu is None:
            raise UserError("a device's peak tells its time at an MFU alone; say which: --mfu 0.4")
        if (tflops is None) == (name is None):
            raise UserError(
                f"--mfu {mfu:g} is a share of one peak; give --device-tflops 312, or a device by name: --device A100"
            )
        if name is not None and data_sheet(name, "fp32") is None:
            raise UserError(
                f"--device {name}: no data sheet here has its peak{nearest(name, DATA_SHEETS)}; else give "
                "--device-tflops"
            )
        return cls(mfu, tflops, name)

    def hours(self, model_flops: int, precision: str, products: MatmulPrecision = BY_DEFAULT) -> DeviceHours:
        """Of one device. precision, products: number formats of the training. Raises UserError where the device has no
        peak in them."""
        peak, origin = self._peak(precision, products)
        hours = model_flops / (self.mfu * peak * SECONDS)
        return DeviceHours(hours=hours, mfu=self.mfu, peak=peak, peak_of=origin)

    def _peak(self, precision: str, products: MatmulPrecision) -> tuple[float, str]:
        """FLOP/s, and where they are from."""
        if self.tflops is not None:
            return self.tflops * TERA, "as given"
        assert self.name is not None
        formats = f"fp32, matmul_precision {products}" if precision == "fp32" else precision
        peak = data_sheet(self.name, precision, products)
        if peak is None:
            raise UserError(f"--device {self.name}: its data sheet has no peak in {formats}; give --device-tflops")
        return peak, f"NVIDIA's data sheet of {self.name}, dense products in {formats}"
