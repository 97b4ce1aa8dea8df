"""What a step of fitting LiGO takes, beside a step of training the target plainly with activation checkpointing.

    python benchmarks/fit_speed.py                 BERT (6, 384) -> (12, 768), fp32: 25 minutes on two cores, 6 GB
    python benchmarks/fit_speed.py --tokens 1024 --layers 2 --hidden 48    a check that it runs, a minute

Two processes, an engine of one rank each, which take turns: in each round both make one step at every size of a
micro-batch. Printed are medians and the range of the rounds' ratios. Memory: the largest RssAnon of each process at
that size, with the memory for copies of its saves, the libraries' own (measured before the engine) taken off.
"""

import argparse
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch
from transformers import PretrainedConfig

from benchmarks.memory import Peak, anonymous_here
from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.config.schema import TrainStage
from pipeline.data import Batch
from pipeline.growth import methods
from pipeline.growth.grown_model import GrownModel
from pipeline.growth.making import making_cost
from pipeline.growth.plan import begun_module
from pipeline.optim.parameter_groups import GroupRule
from pipeline.training.engine import Engine
from pipeline.training.process_group import join
from pipeline.training.subject import Trained, of_model

BLOCK, SCORED, VOCABULARY = 128, 19, 30_522
SIDES = ("plain", "fit")


@dataclass(frozen=True)
class Growth:
    """Sizes of the target; the source has half of both."""

    layers: int
    hidden: int

    def config(self, scale: int) -> PretrainedConfig:
        layers, hidden = self.layers // scale, self.hidden // scale
        sizes = ModelSizes(family="bert-pre-ln", layers=layers, hidden=hidden, heads=max(1, hidden // 64))
        facts = {"kind": "text", "vocab_size": VOCABULARY, "block": BLOCK, "scored": SCORED}
        return models.trained(sizes, facts)


def stage(samples: int) -> TrainStage:
    fields = {"kind": "train", "name": "t", "model": "m", "batch": samples, "activation_checkpointing": True}
    return TrainStage.model_validate({**fields, "schedule": {"peak": 1e-4, "horizon": "1000 steps"}})


def batch(samples: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (samples, BLOCK), generator=generator)
    positions = torch.rand(samples, BLOCK, generator=generator).argsort(1)[:, :SCORED]
    return Batch({"input_ids": ids, "masked_positions": positions}, ids.gather(1, positions), samples)


def trained(side: str, growth: Growth) -> Trained:
    small, large = growth.config(2), growth.config(1)
    if side == "plain":
        return of_model(models.build(large), activation_checkpointing=True)
    source = models.build(small)
    names = {row.module_name: row.name for row in models.architecture_of(small).rows()}
    weights = {names[name]: parameter.detach() for name, parameter in source.named_parameters()}
    options = methods.parse("ligo")
    module = begun_module(models.architecture_of(small), models.architecture_of(large), options)
    grown = GrownModel((small, large), options, module, weights)
    making = making_cost(grown.plan())
    print(f"making the weights: {making.forward:.3g} FLOPs forward, {making.backward:.3g} backward", flush=True)
    return Trained(grown, ((GroupRule(decayed=True), dict(grown.named_parameters())),))


def work(side: str, growth: Growth, sizes: list[int], port: int, pipe: Connection) -> None:
    """Make a step of so many samples for every number that comes, and answer with seconds and bytes."""
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world, libraries = join(), anonymous_here()
    engine = Engine(trained(side, growth), stage(max(sizes)), world, seed=0)
    for number, samples in enumerate(iter(pipe.recv, None)):
        with Peak() as peak:
            begun = time.perf_counter()
            engine.step([batch(samples, number)], number, rate=1e-4)
            seconds = time.perf_counter() - begun
        pipe.send((seconds, peak.most - libraries))


def rounds(growth: Growth, sizes: list[int], count: int) -> Iterator[dict[tuple[str, int], tuple[float, int]]]:
    """(seconds, bytes) of a step by side and samples; the first round, which takes up memory, is not given."""
    context = multiprocessing.get_context("spawn")
    pipes, workers = {}, []
    for side in SIDES:
        pipes[side], theirs = context.Pipe()
        workers.append(context.Process(target=work, args=(side, growth, sizes, free_port(), theirs), daemon=True))
        workers[-1].start()
    for number in range(count + 1):
        measured = {}
        for samples in sizes:
            for side in SIDES if number % 2 else SIDES[::-1]:
                pipes[side].send(samples)
                measured[side, samples] = pipes[side].recv()
        if number:
            yield measured
    for pipe, worker in zip(pipes.values(), workers, strict=True):
        pipe.send(None)
        worker.join()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def show(measured: list[dict[tuple[str, int], tuple[float, int]]], sizes: list[int]) -> None:
    for samples in sizes:
        seconds, memory = ([{s: m[s, samples][place] for s in SIDES} for m in measured] for place in (0, 1))
        ratios = sorted(each["fit"] / each["plain"] for each in seconds)
        plain, fit = (median(each[side] for each in seconds) for side in SIDES)
        held = {side: max(each[side] for each in memory) for side in SIDES}
        print(
            f"{samples * BLOCK:>6} tokens: {plain:.2f} s plain, {fit:.2f} s fit, ratio {median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}); memory {held['plain'] / 2**20:,.0f} and "
            f"{held['fit'] / 2**20:,.0f} MiB, ratio {held['fit'] / held['plain']:.2f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096, 16384], help="of a micro-batch")
    parser.add_argument("--layers", type=int, default=12, help="of the target")
    parser.add_argument("--hidden", type=int, default=768, help="of the target")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    sizes = [max(1, tokens // BLOCK) for tokens in sorted(chosen.tokens)]
    show(list(rounds(Growth(chosen.layers, chosen.hidden), sizes, chosen.rounds)), sizes)


if __name__ == "__main__":
    main()
