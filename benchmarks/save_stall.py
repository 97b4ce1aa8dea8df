"""What a save costs the training: ours in the background and blocking, DeepSpeed's own, torch's asynchronous one.

    python benchmarks/save_stall.py                      12 layers of 512, ZeRO-1, 2 ranks: 3 minutes, 3 GB of disk
    python benchmarks/save_stall.py --layers 2 --hidden 64 --rounds 2      a check that it runs, half a minute

One run: in each round every side saves the same engine's state once, with training steps before it and after it until
the checkpoint is published. The stall is the time for which a rank does not train (the longest of the ranks); torch's
asynchronous distributed checkpoint gets the tensors that DeepSpeed's files hold, and needs no hash. Ours hashes, syncs
to disk and reads back; DeepSpeed's and torch's do none of it. Memory: of rank 0, beyond what training alone takes.
"""

import argparse
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.multiprocessing.spawn import start_processes

from benchmarks.memory import Peak
from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.config.schema import TrainStage
from pipeline.data import Batch
from pipeline.training.engine import Engine
from pipeline.training.process_group import World, join
from pipeline.training.subject import of_model

WORLD, TOKENS, SAMPLES, VOCABULARY = 2, 64, 2, 8192
SIDES = ("ours, background", "ours, blocking", "DeepSpeed", "torch, asynchronous")


@dataclass
class Measured:
    """One save: seconds of a step before it and of those during it, of the stall, until it was published; bytes."""

    step: float
    during: float
    stall: float
    published: float
    memory: int


def stage(zero_stage: int) -> TrainStage:
    fields = {"kind": "train", "name": "t", "model": "m", "batch": WORLD * SAMPLES, "zero_stage": zero_stage}
    return TrainStage.model_validate({**fields, "schedule": {"peak": 1e-4, "horizon": "1000 steps"}})


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (SAMPLES, TOKENS), generator=generator)
    positions = torch.rand(SAMPLES, TOKENS, generator=generator).argsort(1)[:, :8]
    return Batch({"input_ids": ids, "masked_positions": positions}, ids.gather(1, positions), SAMPLES)


class Bench:
    """One rank."""

    def __init__(self, engine: Engine, world: World, folder: Path):
        self.engine, self.world, self.folder, self.number = engine, world, folder, 0
        self.group = dist.new_group(backend="gloo")  # the asynchronous save's own: training goes on in another
        self.savers: dict[str, Callable[[Path], Callable[[], bool]]] = {
            "ours, background": lambda place: self._ours(place, background=True),
            "ours, blocking": lambda place: self._ours(place, background=False),
            "DeepSpeed": self._deepspeed,
            "torch, asynchronous": self._torch,
        }

    def step(self) -> float:
        begun = time.perf_counter()
        self.number += 1
        self.engine.step([batch(self.number * WORLD + self.world.rank)], self.number, rate=1e-5)
        return time.perf_counter() - begun

    def _ours(self, place: Path, background: bool) -> Callable[[], bool]:
        saving = self.engine.saving
        saving.background = background
        self.engine.save(place, self.number, {"kind": "train"})
        return lambda: saving.flight is None or saving.flight.published.done()

    def _deepspeed(self, place: Path) -> Callable[[], bool]:
        ours = self.engine.deepspeed.checkpoint_engine
        self.engine.deepspeed.checkpoint_engine = ours.own
        self.engine.deepspeed.save_checkpoint(str(place), tag="own", save_latest=False)
        self.engine.deepspeed.checkpoint_engine = ours
        return lambda: True

    def _torch(self, place: Path) -> Callable[[], bool]:
        state: dict[str, Any] = {f"rank-{self.world.rank}": self.engine.deepspeed.optimizer.state_dict()}
        if self.world.first:
            state["module"] = self.engine.deepspeed.module_state_dict()
        future = async_save(state, checkpoint_id=place, process_group=self.group)
        assert isinstance(future, Future)
        return future.done

    def save(self, side: str) -> Measured:
        place = self.folder / side.replace(", ", "-")
        with Peak() as training:
            steps = [self.step() for _ in range(3)]
        dist.barrier()
        with Peak() as peak:
            begun = time.perf_counter()
            published = self.savers[side](place)
            stall, during = time.perf_counter() - begun, []
            while not self._all(published()):
                during.append(self.step())
            seconds = time.perf_counter() - begun
        self.engine.saving.finish()
        reserved = self.engine.saving.memory.size if side == SIDES[0] else 0
        memory = max(0, peak.most - training.most) + reserved
        measured = Measured(median(steps), median(during or steps), stall, seconds, memory)
        dist.barrier()
        if self.world.first:
            shutil.rmtree(place)
        dist.barrier()
        return measured

    def _all(self, published: bool) -> bool:
        said = torch.tensor(float(published))
        dist.all_reduce(said, dist.ReduceOp.MIN)
        return bool(said)


def rank(number: int, port: int, chosen: argparse.Namespace, folder: str) -> None:
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(WORLD),
        "LOCAL_WORLD_SIZE": str(WORLD),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    world = join()
    torch.set_num_threads(1)
    family = models.family("bert-pre-ln")
    sizes = ModelSizes(family="bert-pre-ln", layers=chosen.layers, hidden=chosen.hidden, heads=chosen.hidden // 64)
    facts = {"kind": "text", "vocab_size": VOCABULARY, "block": TOKENS, "scored": 8}
    model = models.build(family.configure(sizes, facts), seed=1)
    bench = Bench(Engine(of_model(model), stage(chosen.zero_stage), world, seed=0), world, Path(folder))
    found: dict[str, list[Measured]] = {side: [] for side in SIDES}
    for each in range(chosen.rounds + 1):
        for side in SIDES:
            measured = bench.save(side)
            if each:  # the first round warms up every side
                found[side].append(longest(measured))
    if world.first:
        table(found, sum(p.numel() for p in model.parameters()))
    dist.barrier()
    os._exit(0)


def longest(measured: Measured) -> Measured:
    """With the stall and the publication of the slowest rank."""
    pair = torch.tensor([measured.stall, measured.published])
    dist.all_reduce(pair, dist.ReduceOp.MAX)
    measured.stall, measured.published = pair.tolist()
    return measured


def spread(values: list[float], unit: str = "") -> str:
    return f"{median(values):.2f}{unit} ({min(values):.2f} to {max(values):.2f})"


def table(found: dict[str, list[Measured]], parameters: int) -> None:
    print(f"{parameters:,} parameters, {WORLD} ranks, median (smallest to largest) of {len(found[SIDES[0]])} rounds")
    print("| side | stall, s | of a step | of DeepSpeed's | published after, s | steps meanwhile | memory |")
    print("|---|---|---|---|---|---|---|")
    for side, saves in found.items():
        cells = [
            spread([save.stall for save in saves]),
            spread([save.stall / save.step for save in saves]),
            spread([a.stall / b.stall for a, b in zip(saves, found["DeepSpeed"], strict=True)]),
            spread([save.published for save in saves]),
            spread([save.during / save.step for save in saves], "x"),
            f"{max(save.memory for save in saves) / 2**20:,.0f} MiB",
        ]
        print(f"| {side} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--zero-stage", type=int, default=1, choices=(1, 2, 3))
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    chosen = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        start_processes(rank, (port, chosen, folder), nprocs=WORLD, start_method="fork")


if __name__ == "__main__":
    main()
