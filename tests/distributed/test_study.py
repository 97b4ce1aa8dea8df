"""A real study: arms tuned, seeds trained, killed in the middle; what has ended is not trained again."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from tests.helpers.cli import lemon, lemon_here
from tests.helpers.processes import FORK
from tests.helpers.waiting import wait_for

RATE = {"kind": "cosine", "peak": 2.0e-3, "warmup": "2 steps", "horizon": "12 steps"}
PEAKS = {"large.schedule.peak": [1.0e-3, 2.0e-3]}


def config(folder: Path) -> Path:
    sizes = {"family": "vit", "layers": 2, "hidden": 16, "heads": 2, "patch": 2}
    train = {"kind": "train", "batch": 16, "evaluate_every": "4 steps", "attention": "sdpa", "schedule": RATE}
    large = {**train, "name": "large", "model": "large"}
    behind = {**large, "start": "grown", "schedule": {**RATE, "kind": "lemon", "fraction": 0.5}}
    grown = {"kind": "expand", "name": "grown", "source": "small", "model": "large"}
    content = {
        "name": "tiny",
        "folder": str(folder / "{name}"),
        "baseline": "scratch",
        "tuning": {"trials": 2, "seed": 0},
        "seeds": [1, 2],
        "run": {
            "processes": 2,
            "data": {"kind": "images", "dataset": "embedded", "size": 8, "channels": 1, "evaluation_images": 64},
            "models": {"small": sizes, "large": {**sizes, "hidden": 32, "heads": 4}},
        },
        "sources": [{**train, "name": "small", "model": "small"}],
        "arms": {
            "scratch": {"stages": [large], "tune": PEAKS},
            "lemon": {"stages": [grown, behind], "tune": PEAKS},
            "net2net": {"stages": [{**grown, "method": "net2net"}, behind], "like": "lemon", "seeds": [1]},
        },
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_a_study_that_is_killed_goes_on(tmp_path, capfd):
    path, study = config(tmp_path), tmp_path / "tiny"
    process = FORK.Process(target=lemon_here, args=("study", path))
    process.start()
    begun = study / "seed-1" / "lemon" / "stage.json"
    wait_for(begun.exists, 300)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    ended = [file for file in study.rglob("stage.json") if json.loads(file.read_text())["status"] == "finished"]
    before = {file: file.stat().st_mtime_ns for file in ended}
    assert len(before) >= 9  # six of the tuning, scratch, small and its growth of the first seed

    code, said, error = lemon(capfd, "study", path)
    assert code == 0, error
    assert "16 of 16 stages done, 100.0 % of the FLOPs" in said and "'lemon' " in said
    assert {file: file.stat().st_mtime_ns for file in before} == before
    held = json.loads((study / "study.json").read_text())
    assert not held["unfinished"] and [len(arm["seeds"]) for arm in held["arms"]] == [2, 2, 1]
    for key in ("training", "everything"):
        assert sum(run[key]["flops"] for run in held["spent"]) == held["whole"][key]["flops"]
    scratch, grown, _ = held["arms"]
    for one, other in zip(scratch["seeds"], grown["seeds"], strict=True):
        assert one["target"] == other["target"] == one["final"] and other["source"] > 0
        assert other["behind"] == pytest.approx(other["before"], abs=1e-4) and other["memory"] > 0

    code, said, _ = lemon(capfd, "study", path, "--dry-run")
    assert code == 0 and said.count("done") >= 16 and "to do" not in said
    code, _, error = lemon(capfd, "study", path, "metric=top1")
    assert code == 2 and "a rule is fixed before the first run" in error
