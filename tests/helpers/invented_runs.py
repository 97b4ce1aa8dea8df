"""Invented run folders: stages with round numbers, so that savings can be worked out by hand."""

import math
from pathlib import Path

import yaml

from pipeline.records.run_folder import StageFolder, write_json
from pipeline.records.stage_facts import ExpandFacts, TrainFacts
from pipeline.records.stage_records import EvaluationRecord, LedgerEntry, TrainingRecord

SMALL = {"layers": 2, "hidden": 8, "heads": 2, "mlp": 32}
MEDIUM = {"layers": 2, "hidden": 12, "heads": 3, "mlp": 48}
LARGE = {"layers": 4, "hidden": 16, "heads": 4, "mlp": 64}
SCRATCH_LOSS = {0: 8.0, 10: 6.0, 20: 5.0, 40: 4.0}
LARGE_LOSS = {0: 5.0, 10: 4.5, 20: 3.5}
SETTINGS = {
    "batch": 4,
    "micro_batch": 2,
    "precision": "fp32",
    "matmul_precision": "highest",
    "zero_stage": 1,
    "world_size": 2,
    "optimizer": {"eps": 1e-8},
    "activation_checkpointing": False,
    "seed": 0,
}


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
    content = {**common(name, sizes), "origin": origin, "start": origin, "schedule": schedule, "steps": steps or done}
    settings = {"settings": SETTINGS, "flops_per_step": {"train": flops, "recompute": recompute}, "device": "CPU <x86>"}
    begun = TrainFacts(**{**content, **settings, "samples_per_step": 4, "tokens_per_step": 32, **facts})
    stage.begin(begun)
    for step in range(done + 1):
        if step:
            stage.metrics.append(training_record(step, 3.0 + 1 / step))
            spend(stage, step, "train", flops, 4, 32)
        if step and recompute:
            spend(stage, step, "recompute", recompute)
        if step in losses:
            loss = losses[step]
            stage.metrics.append(EvaluationRecord(step=step, eval_loss=loss, perplexity=math.exp(loss)))
            spend(stage, step, "evaluate", 7, 16, 128)
    if finished:
        stage.finish(begun)
    return stage


def common(name: str, sizes: dict) -> dict:
    """Facts of a stage of any kind."""
    names = {"name": name, "model": f"model-{sizes['hidden']}", "family": "bert-pre-ln"}
    return {**names, "sizes": sizes, "parameters": 1234, "versions": {"torch": "2.13"}, "fingerprint": {}}


def training_record(step: int, loss: float, window: int = 1, mfu: float | None = None) -> TrainingRecord:
    """`window` steps of half a second each."""
    speed = {"seconds": 0.5, "samples_per_second": 8.0, "tokens_per_second": 64.0, "mfu": mfu, "window": window}
    return TrainingRecord(step=step, loss=loss, lr=1e-3, grad_norm=1.0, **speed)


def spend(stage: StageFolder, step: int, kind: str, flops: int, samples: int = 0, tokens: int = 0) -> None:
    stage.ledger.append(LedgerEntry(step=step, kind=kind, flops=flops, samples=samples, tokens=tokens))


def expand(run: Path, name: str, source: str, sizes: dict, **facts) -> StageFolder:
    stage = StageFolder(run / name)
    gates = {"float64": 2e-6, "float32": 1e-5}
    content = {
        **common(name, sizes),
        "origin": source,
        "method": "lemon",
        "method_options": {"depth": "cancel", "placement": "even"},
        "optimizer_state": "reset",
        "lossless": True,
        "config_change": {},
        "layout": {"layout": "zero", "zero_stage": 1, "world_size": 2, "bf16": False},
        "verification": {"float64": 3e-8, "float32": 4e-7, "gates": gates},
    }
    begun = ExpandFacts(**{**content, **facts})
    stage.begin(begun)
    spend(stage, 0, "grow", 3)
    spend(stage, 0, "verify", 5, 2, 16)
    stage.finish(begun)
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
