"""Invented run folders: stages with round numbers, so that savings can be worked out by hand."""

import math
from pathlib import Path

import yaml

from pipeline.records.run_folder import StageFolder, write_json

SMALL = {"layers": 2, "hidden": 8, "heads": 2, "mlp": 32}
MEDIUM = {"layers": 2, "hidden": 12, "heads": 3, "mlp": 48}
LARGE = {"layers": 4, "hidden": 16, "heads": 4, "mlp": 64}
SCRATCH_LOSS = {0: 8.0, 10: 6.0, 20: 5.0, 40: 4.0}
LARGE_LOSS = {0: 5.0, 10: 4.5, 20: 3.5}


def make_run(folder: Path, stages: dict[str, str], kind: str = "text") -> Path:
    """A run folder without its stages. `stages`: name -> kind."""
    listed = [{"name": name, "kind": stage} for name, stage in stages.items()]
    config = {"name": folder.name, "data": {"kind": kind, "dataset": "embedded"}, "stages": listed}
    (folder / "data").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_json(folder / "data" / "data.json", {"facts": {"kind": kind, "unigram_entropy": 6.2}})
    return folder


def train(
    run: Path,
    name: str,
    sizes: dict,
    losses: dict[int, float],
    *,
    origin: str | None = None,
    flops: int = 10,
    recompute: int = 0,
    finished: bool = True,
    steps: int | None = None,
    **facts,
) -> StageFolder:
    """A training stage of `max(losses)` steps with `flops` (and `recompute`) FLOPs each, evaluated at `losses`."""
    done = max(losses)
    schedule = {"kind": "cosine", "peak": 1e-3, "minimum": 0.0, "initial": 0.0, "warmup": 2, "steps": steps or done}
    stage = StageFolder(run / name)
    stage.begin(
        **{
            "kind": "train",
            "name": name,
            "model": f"model-{sizes['hidden']}",
            "family": "bert-pre-ln",
            "sizes": sizes,
            "parameters": 1234,
            "origin": origin,
            "schedule": schedule,
            "settings": {"batch": 4, "world_size": 2, "optimizer": {"eps": 1e-8}},
            "flops_per_step": {"train": flops, "recompute": recompute},
            "samples_per_step": 4,
            "tokens_per_step": 32,
            "steps": steps or done,
            "device": "CPU <x86>",
            "versions": {"torch": "2.13"},
            **facts,
        }
    )
    for step in range(done + 1):
        if step:
            stage.metrics.append(
                step=step,
                loss=3.0 + 1 / step,
                lr=1e-3,
                grad_norm=1.0,
                seconds=0.5,
                samples_per_second=8.0,
                tokens_per_second=64.0,
                mfu=None,
            )
            stage.ledger.append(step=step, kind="train", flops=flops, samples=4, tokens=32)
        if step and recompute:
            stage.ledger.append(step=step, kind="recompute", flops=recompute, samples=0, tokens=0)
        if step in losses:
            stage.metrics.append(step=step, eval_loss=losses[step], perplexity=math.exp(losses[step]))
            stage.ledger.append(step=step, kind="evaluate", flops=7, samples=16, tokens=128)
    if finished:
        stage.finish()
    return stage


def expand(run: Path, name: str, source: str, sizes: dict, **facts) -> StageFolder:
    stage = StageFolder(run / name)
    gates = {"float64": 2e-6, "float32": 1e-5}
    stage.begin(
        **{
            "kind": "expand",
            "name": name,
            "model": f"model-{sizes['hidden']}",
            "family": "bert-pre-ln",
            "sizes": sizes,
            "parameters": 1234,
            "origin": source,
            "method": "lemon",
            "depth": "cancel",
            "placement": "even",
            "lossless": True,
            "verification": {"float64": 3e-8, "float32": 4e-7, "gates": gates},
            **facts,
        }
    )
    stage.ledger.append(step=0, kind="grow", flops=3, samples=0, tokens=0)
    stage.ledger.append(step=0, kind="verify", flops=5, samples=2, tokens=16)
    stage.finish()
    return stage


STAGES = {"small": "train", "grown": "expand", "large": "train", "scratch": "train"}


def simple_run(folder: Path, small_flops: int = 3, **large) -> Path:
    """small (60 FLOPs) -> grown -> large (10 a step, of them 2 recomputed); scratch, 400 FLOPs to loss 4."""
    run = make_run(folder, STAGES)
    train(run, "small", SMALL, {0: 8.0, 20: 5.0}, flops=small_flops)
    expand(run, "grown", "small", LARGE)
    train(run, "large", LARGE, LARGE_LOSS, **{"origin": "grown", "flops": 8, "recompute": 2, **large})
    train(run, "scratch", LARGE, SCRATCH_LOSS)
    return run
