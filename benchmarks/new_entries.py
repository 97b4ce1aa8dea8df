"""What the correction of new entries adds to an update: torch's fused AdamW alone, and with it, one after the other.

    python benchmarks/new_entries.py                 20 million numbers, float32
    python benchmarks/new_entries.py --numbers 1e6 --rounds 3      a check that it runs

Sides: `plain`; `grown`, a parameter of which all entries are new, as in a new layer; `mixed`, one of which half are, as
behind a growth in width. Printed are the medians over the rounds, and the median and range of each round's ratios. It
is the optimizer's part of a step alone, which forward and backward passes outweigh.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # as a script it sees its own folder only

import torch

from pipeline.growth.new_entries import NewEntries, Ranges
from pipeline.optim.optimizers import AdamW
from pipeline.optim.rewarm import Ramp
from pipeline.training.entry_rates import EntryRates

SIDES: dict[str, tuple[Ranges, ...] | None] = {"plain": None, "grown": (), "mixed": (((0, 1),),)}
"""The old entries along the axes of a parameter of two rows; None: all are old."""
STEPS = 5
"""In a round."""


def optimizer_of(side: str, numbers: int) -> torch.optim.Optimizer:
    """Over one parameter of two rows, with the hooks of `EntryRates` where it has new entries."""
    parameter = torch.nn.Parameter(torch.randn(2, numbers // 2))
    parameter.grad = torch.randn_like(parameter)
    built = AdamW().build([{"params": [parameter]}], lr=1e-6, fused=True)
    if (kept := SIDES[side]) is not None:
        axes = (*kept, ((0, numbers // 2),)) if kept else ()
        engine = SimpleNamespace(optimizer=built, global_steps=0)  # what a stage without ZeRO has of an engine
        EntryRates(engine, AdamW(), [NewEntries(0, -9.0, {"w": axes})], Ramp(10**6, 1.3), {"w": parameter})
    return built


def seconds(optimizer: torch.optim.Optimizer) -> float:
    begun = time.perf_counter()
    for _ in range(STEPS):
        optimizer.step()
    return (time.perf_counter() - begun) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--numbers", type=float, default=2e7)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    optimizers = {side: optimizer_of(side, int(options.numbers)) for side in SIDES}
    rounds = [{side: seconds(each) for side, each in optimizers.items()} for _ in range(options.rounds + 1)][1:]
    for side in SIDES:
        ratios = [each[side] / each["plain"] for each in rounds]
        spread = f"{median(ratios):.2f} times plain ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{side:6} {1e3 * median(each[side] for each in rounds):8.2f} ms   {spread}")


if __name__ == "__main__":
    main()
