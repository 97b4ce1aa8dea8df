"""What processes that train together find out: precisions, bandwidth between them, parity."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline.doctor.finding import Finding, graded
from pipeline.doctor.parity import parity
from pipeline.training import device_precisions, process_group
from pipeline.training.process_group import World

NUMBERS, REPEATS = 16 << 20, 5
"""float32 numbers of an all-reduce (64 MiB); the fastest of so many counts."""
SLOW = 0.5
"""GB/s: at less, the gradients of BERT-base in bf16 take half a second."""


def findings(folder: Path) -> Path:
    """The file in which rank 0 leaves what was found, a line of JSON each."""
    return folder / "findings.jsonl"


def work(folder: Path) -> None:
    """Be one of these processes, to its end; rank 0 prints each verdict as it comes."""
    world = process_group.join()
    for finding in _found(world):
        if world.first:
            print(finding.line, flush=True)
            with findings(folder).open("a", encoding="utf-8") as file:
                file.write(finding.model_dump_json() + "\n")
    process_group.leave()


def _found(world: World) -> Iterator[Finding]:
    said = device_precisions.half_precisions()
    text = ", ".join(f"{name} {'yes' if able else 'no'}" for name, able in said.items())
    yield graded("precisions", f"{text}, as DeepSpeed sees the devices", "train in fp32", note=not said["bf16"])
    yield bandwidth(world)
    yield from parity(world, device_precisions.supported_precisions())


def bandwidth(world: World) -> Finding:
    """Between the ranks, by what a ring moves: 2 (n - 1) / n of the bytes through each."""
    if world.size == 1:
        return Finding(subject="bandwidth", verdict="ok", text="one rank only, nothing to measure")
    numbers, seconds = torch.ones(NUMBERS, device=world.device), []
    for _ in range(REPEATS):
        dist.barrier()
        begun = time.perf_counter()
        dist.all_reduce(numbers)
        numbers[0].item()  # a GPU's work is done when its result is there
        seconds.append(time.perf_counter() - begun)
        numbers.fill_(1.0)
    rate = 2 * (world.size - 1) / world.size * 4 * NUMBERS / min(seconds) / 1e9
    text = f"{rate:.2f} GB/s between {world.size} ranks ({dist.get_backend()}, all-reduce of {NUMBERS * 4 >> 20} MiB)"
    return graded("bandwidth", text, "check the interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME)", note=rate < SLOW)
