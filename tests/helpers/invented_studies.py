"""A study whose runs are invented: stages with round numbers, so that what it finds can be worked out by hand."""

from pathlib import Path
from typing import Any

from pipeline.config import dump, validated
from pipeline.records.run_folder import write_text
from pipeline.studies import choice, protocol
from pipeline.studies.composed import Composed, of_seed, tuning
from pipeline.studies.schema import Study
from tests.helpers.invented_runs import LARGE, SMALL, expand, train

RATE = {"kind": "cosine", "peak": 1.0e-3, "warmup": "2 steps", "horizon": "40 steps"}
DATA = {"kind": "text", "dataset": "embedded", "block": 32, "evaluation_blocks": 32}
FAMILY = {"family": "bert-pre-ln", "layers": 2, "hidden": 8, "heads": 2}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    """The keys of a study: scratch, half of its horizon, and a growth from a small model, tuned by two peaks each."""
    stage = {"kind": "train", "batch": 4, "schedule": RATE}
    small = {**stage, "name": "small", "model": "small"}
    large = {**stage, "name": "large", "model": "large"}
    grown = {"kind": "expand", "name": "grown", "source": "small", "model": "large"}
    half = {**large, "schedule": {**RATE, "horizon": "20 steps"}}
    return {
        "name": "invented",
        "folder": str(folder),
        "baseline": "scratch",
        "frontier": ["half"],
        "smooth": 1,
        "tuning": {"trials": 2, "seed": 9},
        "seeds": [1, 2],
        "run": {"data": DATA, "models": {"small": FAMILY, "large": {**FAMILY, "layers": 4, "hidden": 16, "heads": 4}}},
        "sources": [small],
        "arms": {
            "scratch": {"stages": [large], "tune": {"large.schedule.peak": [1.0e-3, 2.0e-3]}},
            "half": {"stages": [half], "like": "scratch"},
            "lemon": {
                "stages": [grown, {**large, "start": "grown"}],
                "tune": {"large.schedule.peak": [1.0e-3, 2.0e-3]},
            },
        },
        **changes,
    }


def study(folder: Path, **changes: Any) -> Study:
    return validated(Study, content(folder, **changes), Path("study.yaml"))


def trained(composed: Composed, losses: dict[str, dict[int, float]]) -> None:
    """The stages of a run, each training with the losses that its name has here, 10 FLOPs a step (small: 3)."""
    composed.path.mkdir(parents=True, exist_ok=True)
    write_text(composed.path / "config.yaml", dump(composed.config))
    for stage in composed.config.stages:
        if stage.kind == "expand":
            expand(composed.path, stage.name, stage.source, LARGE)
        elif stage.name in losses:
            small = stage.model == "small"
            train(
                composed.path,
                stage.name,
                SMALL if small else LARGE,
                losses[stage.name],
                flops=3 if small else 10,
                origin=stage.start,
            )


SMALL_LOSS = {0: 8.0, 20: 5.0}
TRIALS = {
    "scratch-t1": {0: 8.0, 20: 6.0, 40: 4.5},
    "scratch-t2": {0: 8.0, 20: 5.0, 40: 4.0},
    "small": SMALL_LOSS,
    "lemon-t1": {0: 5.0, 10: 4.5, 20: 3.5},
    "lemon-t2": {0: 5.0, 10: 4.0, 20: 3.75},
}
SEEDS = {
    1: {
        "scratch": {0: 8.0, 20: 5.0, 40: 4.0},
        "half": {0: 8.0, 10: 6.0, 20: 4.5},
        "small": SMALL_LOSS,
        "lemon": {0: 5.0, 10: 4.5, 20: 3.5},
    },
    2: {
        "scratch": {0: 8.0, 20: 5.0, 40: 4.2},
        "half": {0: 8.0, 10: 6.0, 20: 4.6},
        "small": SMALL_LOSS,
        "lemon": {0: 5.0, 10: 4.2, 20: 3.9},
    },
}


def finished(folder: Path, losses: dict[int, dict[str, dict[int, float]]] = SEEDS, **changes: Any) -> Study:
    """A study whose runs have all ended."""
    own = study(folder, **changes)
    own.path.mkdir(parents=True)
    protocol.fix(own, dump(own))
    tuned = tuning(own)
    assert tuned is not None
    trained(tuned, TRIALS)
    choice.fix(own, tuned)
    for seed in own.seeds:
        if seed in losses:
            trained(of_seed(own, seed, choice.recorded(own)), losses[seed])
    return own
