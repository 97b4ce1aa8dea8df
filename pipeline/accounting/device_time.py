"""For how long devices were at work on a stage, and what energy and carbon that took, by factors that a user states."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.accounting.recorded_runs import RecordedStage
from pipeline.records.stage_facts import StartFacts, TrainFacts
from pipeline.records.time_records import StartRecord

HOUR = 3600.0
"""Seconds."""


@dataclass(frozen=True)
class DeviceTime:
    """seconds: in which the workers of a stage were there, by rank 0's clock, steps that were lost included, waiting
    between starts not. device_seconds: each times the ranks of its start. hardware: ranks and device, in words. whole:
    whether the time of all its starts is recorded."""

    stage: str
    seconds: float
    device_seconds: float
    hardware: tuple[str, ...]
    whole: bool = True


@dataclass(frozen=True)
class PowerFactors:
    """What a user states. power: watts of one rank's device; pue: what the site draws over what its devices do;
    intensity: grams of CO2 equivalents a kWh, None where it is not stated; location: in words."""

    power: float
    pue: float = 1.0
    intensity: float | None = None
    location: str | None = None

    def energy(self, device_seconds: float) -> float:
        """In kWh."""
        return device_seconds / HOUR * self.power * self.pue / 1000

    def emissions(self, device_seconds: float) -> float | None:
        """In grams of CO2 equivalents."""
        return None if self.intensity is None else self.energy(device_seconds) * self.intensity


@dataclass(frozen=True)
class _Spell:
    """Time of one start; a step is the one that it is accounted to, as the ledger's lost entries are."""

    step: int
    seconds: float
    start: StartFacts


def device_time(stage: RecordedStage, until: int) -> DeviceTime | None:
    """Of the first `until` steps of a training stage; None where no time is recorded."""
    spells = [spell for spell in _spells(stage) if spell.step <= until]
    if not spells:
        return None
    hardware = (f"{spell.start.settings.world_size} x {spell.start.device}" for spell in spells)
    return DeviceTime(
        stage=stage.name,
        seconds=sum(spell.seconds for spell in spells),
        device_seconds=sum(spell.seconds * spell.start.settings.world_size for spell in spells),
        hardware=tuple(dict.fromkeys(hardware)),
        whole=_from_the_beginning(stage),
    )


def _from_the_beginning(stage: RecordedStage) -> bool:
    """Whether the first start that has recorded time was the stage's first one: earlier releases recorded none."""
    first = next((record for record in stage.times if isinstance(record, StartRecord)), None)
    return first is not None and first.step < 0


def _spells(stage: RecordedStage) -> list[_Spell]:
    """What a start does again behind its step is accounted to the first step that it does."""
    facts = stage.training
    if facts is None or not stage.times:
        return []
    spells: list[_Spell] = []
    started, start = _starts(stage, facts), facts.starts[0]
    for record in stage.times:
        if isinstance(record, StartRecord):
            begin = record.step + 1
            spells += [_Spell(begin, record.unrecorded, start)] if record.unrecorded else []
            spells = [_Spell(min(spell.step, begin), spell.seconds, spell.start) for spell in spells]
            start = next(started)
        else:
            spells += [_Spell(record.step, sum(record.seconds.values()), start)]
    return spells


def _starts(stage: RecordedStage, facts: TrainFacts) -> Iterator[StartFacts]:
    """The facts of each start that has recorded time. Both are recorded in the same order; of a start that has ended
    between the two, or that an older release has begun, those are taken which count its first step."""
    left = list(facts.starts)
    for record in (record for record in stage.times if isinstance(record, StartRecord)):
        place = next((index for index, start in enumerate(left) if start.step == max(record.step, 0)), None)
        if place is None:
            yield facts.start_of(record.step + 1)
        else:
            yield left[place]
            left = left[place + 1 :]
