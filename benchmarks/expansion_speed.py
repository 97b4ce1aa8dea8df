"""Expanding pre-LN BERT (12, 768) to (24, 1024), safetensors to safetensors, against its three unavoidable parts.

    python benchmarks/expansion_speed.py            full size, about 2 minutes on two cores, 4 GB of disk
    python benchmarks/expansion_speed.py --small    a check that it runs, seconds

One run does both sides, twice in turn, and prints the best of each: the parts alone are reading the source, generating
the target's random initialisation (as `transformers` does for a fresh model) and writing a result of the same size.
The expansion does more: it maps every tensor, projects the noise, and (measured apart) verifies, hashes and syncs.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PretrainedConfig

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import in_memory
from pipeline.config.model_sizes import ModelSizes
from pipeline.expansion import expand, planning
from pipeline.growth import methods
from pipeline.records.processes import choose_accelerator

FACTS = {"kind": "text", "vocab_size": 30522, "block": 512, "scored": 76}


def configure(layers: int, hidden: int, heads: int) -> PretrainedConfig:
    return models.trained(ModelSizes(family="bert-pre-ln", layers=layers, hidden=hidden, heads=heads), FACTS)


def timed(name: str, action: Callable[[], Any], times: dict[str, list[float]]) -> Any:
    """What `action` returns; its seconds are appended to `times[name]`."""
    begun = time.perf_counter()
    result = action()
    times.setdefault(name, []).append(time.perf_counter() - begun)
    return result


def read(folder: Path) -> int:
    """Every byte of the source, into memory."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = list(file.keys())
        return sum(file.get_tensor(name).clone().numel() for name in names)


def initialise_and_write(config: PretrainedConfig, path: Path, times: dict[str, list[float]]) -> None:
    model = timed("random initialisation", lambda: models.build(config), times)
    parameters = dict(model.named_parameters())
    weights = {row.name: parameters[row.module].data for row in models.architecture_of(config).rows()}
    timed("write the result", lambda: save_file(weights, path), times)


def measure(small: PretrainedConfig, large: PretrainedConfig, folder: Path, times: dict[str, list[float]]) -> None:
    timed("read the source", lambda: read(folder / "source"), times)
    initialise_and_write(large, folder / "plain.safetensors", times)
    options, layout = methods.parse("lemon", {"depth": "cancel"}), CheckpointLayout("huggingface")
    plan = planning.plan_expansion(folder / "source", large, options, layout)
    timed("expand", lambda: checkpoints.write(expand.grown(plan), plan.large, folder / "grown", plan.layout), times)
    timed("expand, verify, hash, sync, publish", lambda: expand.execute_expansion(plan, folder / "published"), times)
    shutil.rmtree(folder / "grown")
    shutil.rmtree(folder / "published")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    choose_accelerator()
    sizes = [(2, 48, 4), (4, 64, 4)] if options.small else [(12, 768, 12), (24, 1024, 16)]
    small, large = (configure(*size) for size in sizes)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        parameters = {row.module: row.name for row in models.architecture_of(small).rows()}
        source = State(in_memory((parameters[name], p.data) for name, p in models.build(small).named_parameters()))
        checkpoints.write(source, small, folder / "source", CheckpointLayout("huggingface"))
        times: dict[str, list[float]] = {}
        for _ in range(2):
            measure(small, large, folder, times)
    finally:
        shutil.rmtree(folder)
    report(times, models.architecture_of(small).parameters, models.architecture_of(large).parameters)


def report(times: dict[str, list[float]], before: int, after: int) -> None:
    best = {name: min(seconds) for name, seconds in times.items()}
    floor = sum(list(best.values())[:3])  # dictionaries keep their order: the three parts come first
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {before:,} -> {after:,} parameters")
    for name, seconds in best.items():
        print(f"{name:40s} {seconds:8.2f} s {seconds / floor:6.2f} x the parts")
    print(f"{'the three parts together':40s} {floor:8.2f} s   1.00")


if __name__ == "__main__":
    main()
