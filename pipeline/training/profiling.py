"""A few steps of a stage, measured one by one on every rank: seconds by part, memory, and on request a trace."""

import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pipeline.accounting import budget
from pipeline.accounting.budget import Kernels, Operator, Seconds
from pipeline.training.engine import Engine
from pipeline.training.process_group import World
from pipeline.training.samples import StepSamples
from pipeline.training.stage import TrainingPlan

logger = logging.getLogger(__name__)

WARM_UP = 3
"""Steps before the measured ones: kernels are compiled, buffers made, caches filled; memory is looked at."""
TRACED = 2
"""Steps of a trace, behind the measured ones."""
OPERATORS = 12
"""Those that take longest are told."""
TELL = 5.0
"""Seconds between two lines that say how far it is."""
LOOK = 0.005
"""Seconds between two looks at a process's memory."""
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Measured:
    """steps: seconds by part of each; compiled: seconds, before them; memory: bytes at most; traced: None without a
    trace."""

    steps: list[Seconds]
    compiled: float
    memory: int
    operators: list[Operator]
    kernels: Kernels | None


class MeasuredSteps:
    """The steps of an engine on the samples of its stage."""

    def __init__(self, plan: TrainingPlan, engine: Engine, world: World):
        self.plan, self.engine, self.world = plan, engine, world
        ranks: dict[str, Any] = {"micro_batch": engine.micro_batch, "rank": world.rank, "world": world.size}
        self._samples = StepSamples(plan, ranks | {"device": world.device}, engine.accumulation)
        self._number = 0

    def measure(self, steps: int, trace: Path | None) -> Measured:
        """To be called by all ranks at once. trace: the file that rank 0 writes."""
        self.engine.watch.lap("start")
        self.engine.watch.take()
        memory, compiled = self._warm_up()
        seconds = self._measured(steps)
        operators, kernels = self._traced(trace) if trace else ([], None)
        return Measured(seconds, compiled, memory, operators, kernels)

    def _measured(self, steps: int) -> list[Seconds]:
        """Each step of so many. The lines that tell how far it is are no part of one."""
        self._say(f"{steps} measured steps")
        seconds: list[Seconds] = []
        told = time.perf_counter()
        for number in range(1, steps + 1):
            seconds.append(self._step())
            if number < steps and time.perf_counter() - told > TELL:
                told = time.perf_counter()
                self._say(f"step {number} of {steps}, {sum(seconds[-1].values()):.3g} s")
        return seconds

    def _say(self, words: str) -> None:
        logger.info(f"{self.plan.stage.name}: {words}")
        self.engine.watch.begin(time.perf_counter())

    def _step(self) -> Seconds:
        """The next step, of which nothing is under way when it ends."""
        number = self._number
        self._number += 1
        self.engine.step(self._samples.of(number), number, self.plan.rates.at(number))
        self.engine.watch.lap("other")
        return self.engine.watch.take()

    def _warm_up(self) -> tuple[int, float]:
        """Bytes of memory at most, and seconds of compiling."""
        self._say(f"{WARM_UP} steps to warm up")
        with PeakMemory(self.world.device) as memory:
            compiled = sum(self._step().get("compile", 0.0) for _ in range(WARM_UP))
        return memory.most, compiled

    def _traced(self, trace: Path) -> tuple[list[Operator], Kernels | None]:
        self._say(f"{TRACED} traced steps")
        cuda = self.world.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda) as traced:
            for _ in range(TRACED):
                self._step()
        if self.world.first:
            traced.export_chrome_trace(str(trace))
            logger.info(f"trace: {trace}")
        return _operators(traced, cuda), _kernels(traced) if cuda else None


class PeakMemory:
    """The most memory that this process takes meanwhile, as a context: of a GPU what torch has allocated, of a host
    what is no file's (RssAnon)."""

    def __init__(self, device: torch.device):
        self._device, self._done = device, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.most = 0

    def __enter__(self) -> "PeakMemory":
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            self.most = torch.cuda.max_memory_allocated()
        else:
            self._done.set()
            self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(LOOK):
            self.most = max(self.most, anonymous())


def anonymous() -> int:
    """Bytes of this process's memory that are no file's; 0 where the kernel does not tell."""
    lines = STATUS.read_text().splitlines() if STATUS.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def _operators(traced: profile, cuda: bool) -> list[Operator]:
    """Those that take longest, of one step: kernels of a GPU count for the operator that has started them."""
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    own = [each for each in traced.key_averages() if each.device_type == DeviceType.CPU and not each.is_user_annotation]
    longest = sorted(own, key=lambda each: getattr(each, key), reverse=True)[:OPERATORS]
    return [
        Operator(name=each.key, seconds=getattr(each, key) / 1e6 / TRACED, calls=each.count / TRACED)
        for each in longest
    ]


def _kernels(traced: profile) -> Kernels:
    """Of the device's own events: NCCL's kernels are its communication."""
    spans: dict[bool, list[budget.Span]] = {True: [], False: []}
    for event in traced.events() or []:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            spans["nccl" in event.name.lower()].append((event.time_range.start / 1e6, event.time_range.end / 1e6))
    return budget.kernels(spans[False], spans[True], TRACED)


def of_all_ranks(measured: Measured, world: World) -> list[Measured]:
    """What every rank has measured, rank 0's first. To be called by all ranks at once."""
    gathered: list[Any] = [None] * world.size
    dist.all_gather_object(gathered, measured)
    return gathered
