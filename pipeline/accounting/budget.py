"""Where the time of one training step goes, from steps that were measured one by one, and how near it comes to the peak
of the devices.

    MFU = model FLOPs of a step / (seconds of a step x peak FLOP/s of all devices)
    HFU = (model FLOPs + those of what is computed again) / (seconds x peak)
"""

from collections.abc import Sequence
from statistics import median
from typing import Literal

from pipeline.accounting.recorded_runs import Content

PARTS = ("data", "forward", "backward", "communication", "optimizer", "other")
"""Of a step; other: what the host does besides. Compiling is told apart: it is no part of a step."""
Seconds = dict[str, float]
"""Of one step by part."""


class Part(Content):
    """Seconds of a part of a step on rank 0: median, least and most over the steps; share: of the time of all steps;
    slowest: the median of the rank on which it takes longest."""

    median: float
    least: float
    most: float
    share: float
    slowest: float


class Operator(Content):
    """An operator of torch in a traced step of rank 0: its own seconds on the device, and how often it was called."""

    name: str
    seconds: float
    calls: float


class Kernels(Content):
    """Seconds of a GPU's step: in which it computed, in which it communicated, and in which it only did that."""

    computing: float
    communicating: float
    exposed: float


class Settings(Content):
    """What was measured. numbers: the number formats in words; origin: where the weights came from, in words."""

    stage: str
    model: str
    origin: str
    device: str
    ranks: int
    zero_stage: int
    micro_batch: int
    micro_batches: int
    numbers: str
    attention: str
    compile: bool
    activation_checkpointing: bool | int


class Work(Content):
    """Of one step, over all ranks. again: FLOPs of what is computed again or besides the model; peak: FLOP/s of all
    devices together, None where it is not known; peak_of: where it is from, in words."""

    samples: int
    tokens: int
    flops: int
    again: int
    peak: float | None
    peak_of: str


class Budget(Content):
    """step: the whole of it, parts: by `PARTS`. seconds of compiling are those of the steps before the measured ones.
    memory: bytes of each rank at most, of `memory_of`. mfu, hfu: None where the peak is not known."""

    format: Literal[1] = 1
    settings: Settings
    work: Work
    steps: int
    step: Part
    parts: dict[str, Part]
    compile_seconds: float
    samples_per_second: float
    tokens_per_second: float
    mfu: float | None
    hfu: float | None
    memory: list[int]
    memory_of: str
    kernels: Kernels | None = None
    operators: list[Operator] = []


def parts(ranks: Sequence[Sequence[Seconds]]) -> tuple[Part, dict[str, Part]]:
    """A whole step and its parts. ranks: of every rank the seconds of each measured step; rank 0 comes first."""
    whole = [[sum(step.get(part, 0.0) for part in PARTS) for step in steps] for steps in ranks]
    total = sum(whole[0])
    return _part(whole, total), {
        part: _part([[step.get(part, 0.0) for step in steps] for steps in ranks], total) for part in PARTS
    }


def _part(ranks: list[list[float]], total: float) -> Part:
    own = ranks[0]
    return Part(
        median=median(own),
        least=min(own),
        most=max(own),
        share=sum(own) / total if total else 0.0,
        slowest=max(median(seconds) for seconds in ranks),
    )


def utilization(flops: int, seconds: float, peak: float | None) -> float | None:
    """The share of the peak that so many FLOPs in so many seconds are."""
    return None if peak is None else flops / (seconds * peak)


Span = tuple[float, float]
"""Begin and end of a kernel."""


def kernels(computing: Sequence[Span], communicating: Sequence[Span], steps: int) -> Kernels:
    """Seconds a step in which a device did either, from the spans of all its kernels over some steps, in seconds."""
    busy, both = _length(computing), _length([*computing, *communicating])
    return Kernels(computing=busy / steps, communicating=_length(communicating) / steps, exposed=(both - busy) / steps)


def _length(spans: Sequence[Span]) -> float:
    """Of the union of the spans, some of which may be at the same time."""
    length, until = 0.0, float("-inf")
    for begin, end in sorted(spans):
        length += max(0.0, end - max(begin, until))
        until = max(until, end)
    return length
