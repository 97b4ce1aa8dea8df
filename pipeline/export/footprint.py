"""What a model took of computation, time and energy, in the words and the front matter of its card."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.accounting.compute import Compute, Growth, growths, training_compute
from pipeline.accounting.device_time import HOUR, DeviceTime, PowerFactors, device_time
from pipeline.accounting.lineage import Ancestor
from pipeline.accounting.recorded_runs import RecordedStage, RecordReader
from pipeline.config.schema import FIT
from pipeline.errors import UserError

EPOCH = "https://epoch.ai/data/ai-models-documentation/estimation"
ANNEX = "point 2 of section 1 of Annex XI to the EU AI Act (Regulation (EU) 2024/1689)"


@dataclass(frozen=True)
class Footprint:
    """Of a lineage. times: of its training, untimed: the names of those whose time is not recorded."""

    compute: Compute
    growths: list[Growth]
    times: list[DeviceTime]
    untimed: tuple[str, ...]
    factors: PowerFactors | None = None

    @classmethod
    def of(
        cls, ancestors: Sequence[Ancestor], reader: RecordReader, factors: PowerFactors | None = None
    ) -> "Footprint":
        """ancestors: oldest first. Raises UserError for factors where no time is recorded."""
        measured = [pair for ancestor in ancestors for pair in _times(ancestor, reader)]
        times = [time for _, time in measured if time is not None]
        if factors and not times:
            raise UserError("--device-power: no device time is recorded of what led to this checkpoint; leave it out")
        untimed = tuple(name for name, time in measured if time is None or not time.whole)
        return cls(training_compute(ancestors), growths(ancestors), times, untimed, factors)

    @property
    def device_seconds(self) -> float:
        return sum(time.device_seconds for time in self.times)

    @property
    def hardware(self) -> str:
        return ", ".join(dict.fromkeys(each for time in self.times for each in time.hardware))

    def front(self) -> dict[str, Any]:
        """`co2_eq_emissions` where factors are stated, with the hub's fields
        (https://huggingface.co/docs/hub/model-cards-co2)."""
        grams = self.factors.emissions(self.device_seconds) if self.factors else None
        if self.factors is None or grams is None:
            return {}
        location = {"geographical_location": self.factors.location} if self.factors.location else {}
        emissions = {
            "emissions": float(f"{grams:.6g}"),
            "source": f"{self._least}computed from recorded device time and stated factors: {self._formula()}",
            "training_type": "pre-training",
            **location,
            "hardware_used": self.hardware,
        }
        return {"co2_eq_emissions": emissions}

    def lines(self) -> list[str]:
        """A list in Markdown."""
        return [
            f"As far as it is recorded, what {ANNEX} asks of computational resources, training time and energy:",
            "",
            *self._compute_lines(),
            *map(_growth_line, self.growths),
            *self._time_lines(),
            *self._energy_lines(),
        ]

    def _compute_lines(self) -> list[str]:
        return [
            f"* Training compute of the whole lineage, base models included as [Epoch AI counts it]({EPOCH}): "
            f"{_flops(self.compute)}. Forward and backward passes, recomputation and updates; a multiply-add is two."
            + _lacking("It", self.compute.unknown)
        ]

    def _time_lines(self) -> list[str]:
        if not self.times:
            return ["* Training time: not recorded."]
        stages = "; ".join(
            f"`{time.stage}` {_hours(time.seconds)} on {' and '.join(time.hardware)}, "
            f"{_hours(time.device_seconds)} of devices"
            for time in self.times
        )
        whole = f"{self._least}{_hours(self.device_seconds)} of devices in all"
        total = f"{whole}, with starts, evaluations, saves and lost steps"
        return [f"* Training time: {stages}; {total}." + _lacking("It", self.untimed)]

    @property
    def _least(self) -> str:
        """In front of a sum that lacks something."""
        return "at least " if self.untimed else ""

    def _energy_lines(self) -> list[str]:
        if self.factors is None:
            return []
        energy = f"{self._least}{self.factors.energy(self.device_seconds):.4g} kWh"
        grams = self.factors.emissions(self.device_seconds)
        emissions = "" if grams is None else f", {self._least}{grams:.4g} g of CO2 equivalents"
        return [
            f"* Energy, estimated from factors that were stated, not measured: {energy}{emissions} ({self._formula()})."
        ]

    def _formula(self) -> str:
        """With its numbers."""
        factors = self.factors
        assert factors is not None
        energy = f"{self.device_seconds / HOUR:.6g} device-hours x {factors.power:g} W x PUE {factors.pue:g} / 1000"
        place = f" in {factors.location}" if factors.location else ""
        return energy if factors.intensity is None else f"{energy} x {factors.intensity:g} g/kWh{place}"


def _times(ancestor: Ancestor, reader: RecordReader) -> list[tuple[str, DeviceTime | None]]:
    """Names and times of the training in one part of a lineage: a stage's own, and the fit's of an expansion."""
    if ancestor.kind == "foreign":
        return [(ancestor.name, None)]
    if not ancestor.trains:
        return []
    if ancestor.kind == "train":
        return [(ancestor.name, device_time(ancestor.stage, ancestor.last_step) if ancestor.stage else None)]
    name, stage = f"{ancestor.name}{FIT}", _fit_of(ancestor, reader)
    return [(name, device_time(stage, stage.last_step) if stage else None)]


def _fit_of(ancestor: Ancestor, reader: RecordReader) -> RecordedStage | None:
    folder = ancestor.stage.path.with_name(f"{ancestor.name}{FIT}") if ancestor.stage else None
    return reader.stage(folder) if folder and (folder / "stage.json").exists() else None


def _growth_line(growth: Growth) -> str:
    spent = f"* Training since the growth `{growth.name}`: {_flops(growth.since)}, "
    if growth.share is not None:
        return f"{spent}{100 * growth.share:.4g} % of the {_flops(growth.source)} of its source."
    if growth.source.unknown:
        return f"{spent}of a source whose training compute is not known: no share can be stated."
    if growth.since.unknown:
        return f"{spent}behind {_flops(growth.source)} of its source: no share can be stated."
    return f"{spent}of a source that was not trained: no share can be stated."


def _flops(compute: Compute) -> str:
    """In short, and exactly."""
    least = "at least " if compute.unknown else ""
    return f"{least}{compute.flops:.4g} FLOPs ({compute.flops:,})"


def _lacking(what: str, names: Sequence[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names)
    return f" {what} lacks that of {listed}, of which nothing is recorded." if names else ""


def _hours(seconds: float) -> str:
    return f"{seconds / HOUR:.4g} hours"
