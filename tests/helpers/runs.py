"""A whole run of a few seconds, and what its folder says afterwards."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

STEPS = 24
"""Optimizer steps of a stage whose schedule is not cut."""
BATCH = 16
"""Samples of each."""


def tiny_run(folder: Path, **top: object) -> Path:
    """The config of a chain on the embedded images: ZeRO-2 small, an indivisible expansion, ZeRO-1 large, scratch.
    `top` replaces keys of the top level."""
    rate = {"peak": 1e-3, "minimum": 1e-4, "warmup": "4 steps", "horizon": f"{STEPS} steps"}
    train = {"kind": "train", "batch": BATCH, "evaluate_every": "8 steps", "save_every": "5 steps"}
    train |= {"attention": "sdpa"}  # a measurement may come out another way in the run that this one is compared with
    content = {
        "name": "tiny",
        "folder": str(folder / "run"),
        "processes": 2,
        "seed": 1,
        "data": {
            "kind": "images",
            "dataset": "embedded",
            "size": 8,
            "channels": 1,
            "augment": "shift",
            "evaluation_images": 60,
        },
        "models": {
            "small": {"family": "vit", "layers": 2, "hidden": 24, "heads": 3, "patch": 4, "dropout": 0.1},
            "large": {"family": "vit", "layers": 3, "hidden": 40, "heads": 5, "patch": 4, "dropout": 0.1},
        },
        "stages": [
            {**train, "name": "small", "model": "small", "zero_stage": 2, "schedule": rate},
            {
                "kind": "expand",
                "name": "grown",
                "source": "small",
                "model": "large",
                "method": {"name": "lemon", "depth": "cancel"},
            },
            {
                **train,
                "name": "large",
                "model": "large",
                "start": "grown",
                "zero_stage": 1,
                "schedule": {**rate, "kind": "lemon", "fraction": 0.5},
            },
            {**train, "name": "scratch", "model": "large", "zero_stage": 3, "schedule": rate},
        ],
        **top,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def records(run: Path, stage: str) -> list[dict]:
    """What a stage has recorded so far; a line that is being written does not count."""
    path = run / stage / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def losses(run: Path, stage: str) -> list[tuple]:
    """(step, training loss, evaluation loss) of every record."""
    return [
        (record["step"], record.get("loss"), record.get("eval_loss"))
        for record in records(run, stage)
        if "save_seconds" not in record
    ]


def entries(run: Path, stage: str) -> list[dict]:
    """Every line of a stage's ledger."""
    return [json.loads(line) for line in (run / stage / "ledger.jsonl").read_text().splitlines()]


def ledger(run: Path, stage: str) -> list[dict]:
    """What was spent on what counts: without the lines that a restart from an earlier step made worthless."""
    kept: list[dict] = []
    for entry in entries(run, stage):
        if entry["kind"] == "restart":
            kept = [each for each in kept if each["step"] <= entry["step"]]
        else:
            kept.append(entry)
    return kept


def steps_in_all(run: Path, stage: str) -> int:
    """The optimizer steps that the ledger knows of, those done twice counted twice."""
    return sum(entry["samples"] for entry in entries(run, stage) if entry["kind"] == "train") // BATCH


def copied(finished: Path, folder: Path, *stages: str) -> Path:
    """The config of a run whose data and first stages are those of a finished one."""
    for name in ("data", *stages):
        shutil.copytree(finished / "run" / name, folder / "run" / name)
    return tiny_run(folder)


def interrupted(finished: Path, folder: Path, stage: str, step: int) -> Path:
    """`copied` with one stage, as a kill two steps behind its checkpoint of `step` leaves it."""
    path = copied(finished, folder, stage)
    begun = folder / "run" / stage
    for checkpoint in (begun / "checkpoints").iterdir():
        if int(checkpoint.name.rpartition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    for name in ("metrics.jsonl", "ledger.jsonl"):
        lines = (begun / name).read_text().splitlines(keepends=True)
        (begun / name).write_text("".join(line for line in lines if json.loads(line)["step"] <= step + 2))
    facts = json.loads((begun / "stage.json").read_text())
    (begun / "stage.json").write_text(json.dumps({**facts, "status": "running"}))
    return path


def same_losses(folder: Path, finished: Path, *stages: str) -> None:
    """1e-5: a rank that has its node to itself runs two threads, which sum in another order; measured 1e-8 to 1e-7
    after a few steps."""
    for stage in stages:
        ours, theirs = (
            [r.get("loss", r.get("eval_loss")) for r in records(f / "run", stage) if r["kind"] != "save"]
            for f in (folder, finished)
        )
        assert ours and ours == pytest.approx(theirs, abs=1e-5)
