"""A training step of this pipeline beside those that a user would take instead, on the same model, data and ranks.

    python benchmarks/training_speed.py                    BERT and ViT (6 layers, 256), bf16, fp32, and fp32 as medium
    python benchmarks/training_speed.py --shapes bert --precisions bf16 --rounds 3          one of them
    python benchmarks/training_speed.py --shapes tiny --steps 2 --rounds 2    a check that it runs, a minute
    python benchmarks/training_speed.py --gpu --shapes bert-base-512 vit-base --precisions bf16      real shapes
    python benchmarks/training_speed.py --sides lemon-eager lemon-compiled    what compiling gives

Sides, each a process a rank, which take turns within one run:

* `lemon`: a stage as `lemon run` trains it, its loop, its records, its defaults;
* `lemon-eager`, `lemon-compiled`: the same without and with compiled layers (by default on GPUs alone);
* `deepspeed`: the same layers, data and engine in a bare loop; what it lacks of `lemon` is our overhead;
* `plain`: the same in PyTorch's DistributedDataParallel, weights in bf16 beside fp32 master weights: the floor;
* `trainer`: transformers' Trainer with DeepSpeed, ZeRO-1, transformers' own model and collator;
* `trainer-compiled`: the same with its `torch_compile`.

In each round every side makes the same number of steps; the first round, in which models are compiled and memory is
taken, does not count. Printed are medians over the rounds, and of each round's ratios their median and range; MFU is
model FLOPs of the `lemon` side over the peak that it has found.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only
if "--gpu" not in sys.argv:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch

from benchmarks.ports import free_port
from benchmarks.training_sides import SIDES, TWINS, Job, Shape, work

SHAPES = {
    "bert": Shape("bert", layers=6, hidden=256, heads=4, batch=64, block=128, vocabulary=30522),
    "bert-4096": Shape("bert", layers=6, hidden=256, heads=4, batch=64, block=128),
    "vit": Shape("vit", layers=6, hidden=256, heads=4, batch=64, size=32, patch=4),
    "tiny": Shape("bert", layers=2, hidden=64, heads=2, batch=8, block=32),
    "tiny-vit": Shape("vit", layers=2, hidden=64, heads=2, batch=8, size=8, patch=4),
    "bert-base-512": Shape("bert", layers=12, hidden=768, heads=12, batch=64, block=512, vocabulary=30522),
    "bert-base-128": Shape("bert", layers=12, hidden=768, heads=12, batch=256, block=128, vocabulary=30522),
    "vit-base": Shape("vit", layers=12, hidden=768, heads=12, batch=256, size=224, patch=16),
    "bert-small-512": Shape("bert", layers=6, hidden=384, heads=6, batch=128, block=512, vocabulary=30522),
    "vit-small": Shape("vit", layers=6, hidden=384, heads=6, batch=256, size=224, patch=16),
}
PRECISIONS = ("bf16", "fp32", "medium")
Round = dict[str, float]
Facts = dict[str, Any]


class Side:
    """The processes of one side, a pipe to each."""

    def __init__(self, job: Job, ranks: int):
        context, port = multiprocessing.get_context("spawn"), free_port()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(ranks):
            ours, theirs = context.Pipe()
            self.processes.append(context.Process(target=work, args=(job, rank, ranks, port, theirs), daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.pipes.append(ours)
        facts = [pipe.recv() for pipe in self.pipes]
        self.facts = facts[0]

    def turn(self) -> float:
        """Seconds of a turn, of the slowest rank."""
        for pipe in self.pipes:
            pipe.send("go")
        return max(float(pipe.recv()) for pipe in self.pipes)

    def end(self) -> None:
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(None)
            process.join()


def rounds(sides: dict[str, Side], count: int) -> Iterator[Round]:
    """Seconds of each side's turn, round by round; every second round in the opposite order."""
    for number in range(count + 1):
        order = list(sides) if number % 2 else list(sides)[::-1]
        seconds = {name: sides[name].turn() for name in order}
        if number:
            yield {name: seconds[name] for name in sides}


def compare(shape: Shape, precision: str, chosen: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job = Job("lemon", shape, precision, chosen.steps, chosen.zero_stage, folder, tuple(chosen.set))
        SIDES["lemon"].prepare(job, chosen.ranks)
        lemon = Side(job, chosen.ranks)
        facts = lemon.facts
        same = replace(job, keys=(*job.keys, *chosen_by(facts)))
        others = (name for name in chosen.sides if name != "lemon")
        sides = {"lemon": lemon, **{name: Side(replace(same, side=name), chosen.ranks) for name in others}}
        measured = list(rounds(sides, chosen.rounds))
        for side in sides.values():
            side.end()
    show(shape, precision, measured, facts, chosen)


def chosen_by(lemon: Facts) -> tuple[str, str]:
    """What the other sides take over: the same layers, compiled where its are."""
    return f"attention={lemon['attention']}", f"compile={str(lemon['compile']).lower()}"


def show(shape: Shape, precision: str, measured: list[Round], facts: Facts, chosen: argparse.Namespace) -> None:
    said = ", ".join(f"{key} {value}" for key, value in asdict(shape).items() if value)
    print(f"\n{said}, {precision}, ZeRO-{chosen.zero_stage}, {chosen.ranks} ranks: {facts['device']}")
    print(f"attention {facts['attention']}, compile {facts['compile']}")
    print("| side | a step, ms | samples/s | lemon is so many times as fast |\n|---|---|---|---|")
    for name in chosen.sides:
        steps = [each[name] / chosen.steps for each in measured]
        ratios = sorted(each[name] / each["lemon"] for each in measured)
        print(
            f"| {name} | {1e3 * median(steps):.1f} | {shape.batch / median(steps):.1f} | "
            f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )
    seconds = median(each["lemon"] / chosen.steps for each in measured)
    if facts["peak"]:
        mfu = facts["flops"] / seconds / facts["peak"]
        print(f"MFU {100 * mfu:.1f} %: {facts['flops']:.4g} FLOPs a step, peak {facts['peak']:.4g} FLOP/s")
    overheads(measured, chosen.steps)


def overheads(measured: list[Round], steps: int) -> None:
    """What DeepSpeed adds to the plain loop, and we to DeepSpeed."""
    for words, outer, inner in (("DeepSpeed", "deepspeed", "plain"), ("ours", "lemon", "deepspeed")):
        if {outer, inner} <= measured[0].keys():
            added = sorted(1e3 * (each[outer] - each[inner]) / steps for each in measured)
            print(f"overhead of a step, {words}: {median(added):.1f} ms ({added[0]:.1f} to {added[-1]:.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["bert", "vit"])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), help="lemon is always one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of a side in a round")
    parser.add_argument("--ranks", type=int, help="of a side; by default 2, and one a GPU")
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--gpu", action="store_true", help="on GPUs, a rank each; else on the CPU")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more keys of lemon's stage")
    chosen = parser.parse_args()
    chosen.ranks = chosen.ranks or (torch.cuda.device_count() if chosen.gpu else 2)
    sides = chosen.sides or [name for name in SIDES if chosen.gpu or name not in TWINS]
    chosen.sides = ["lemon", *(name for name in sides if name != "lemon")]
    for name in chosen.shapes:
        for precision in chosen.precisions:
            compare(SHAPES[name], precision, chosen)


if __name__ == "__main__":
    main()
