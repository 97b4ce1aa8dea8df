"""Whole runs through the command line: real workers, kills, resumes, the lock, two launchers."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers import cli
from tests.helpers.cli import ROOT, environment
from tests.helpers.cli import run_lemon as lemon
from tests.helpers.cli import start_lemon as start
from tests.helpers.rotation import rotated
from tests.helpers.runs import STEPS, ledger, losses, records, tiny_run
from tests.helpers.waiting import wait_for


def workers_of(parent: int) -> list[int]:
    """Processes whose parent is `parent`, from /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue  # it ended while we looked
        if int(fields[1]) == parent:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def kill_at(moment: Callable[[], bool], process: subprocess.Popen, victim: str) -> None:
    """Kill the run, or its last worker, at a moment, and wait until nothing of it is left."""
    wait_for(lambda: moment() or process.poll() is not None)
    children = workers_of(process.pid)
    os.kill(children[-1] if victim == "worker" and children else process.pid, signal.SIGKILL)
    process.wait(timeout=60)
    wait_for(lambda: not any(alive(child) for child in children), 20)


TENSORBOARD = str(find_spec("tensorboard") is not None).lower()
"""Whether the small stage writes TensorBoard's events: the package is an extra."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The run that nobody interrupted."""
    folder = tmp_path_factory.mktemp("finished")
    done = lemon("run", tiny_run(folder), f"stages.small.tensorboard={TENSORBOARD}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


def test_the_chain_ends_with_a_report(finished):
    run = finished / "run"
    assert {"config.yaml", "report.html", "report.json", "data", "small", "grown", "large", "scratch"} <= {
        p.name for p in run.iterdir()
    }
    assert [r["step"] for r in records(run, "small") if "loss" in r] == list(range(1, STEPS + 1))
    assert [r["step"] for r in records(run, "large") if "eval_loss" in r] == [0, 8, STEPS // 2]
    manifest = json.loads((run / "large/checkpoints/step-0000012/manifest.json").read_text())
    assert (manifest["zero_stage"], manifest["world_size"]) == (1, 2)
    spent = {stage: sum(e["flops"] for e in ledger(run, stage)) for stage in ("small", "grown", "large")}
    assert manifest["provenance"]["flops"] == sum(spent.values())


def test_records_say_what_each_part_took(finished):
    run = finished / "run"
    for stage in ("small", "large", "scratch"):
        steps, evaluations, saves = (
            [r for r in records(run, stage) if key in r] for key in ("loss", "eval_loss", "save_seconds")
        )
        assert all(r["window"] == 1 and r["seconds"] > 0 and 0 < r["mfu"] <= 1 for r in steps)
        assert all(r["evaluation_seconds"] > 0 for r in evaluations)
        assert [r["step"] for r in saves] == [s for s in range(1, len(steps) + 1) if s % 5 == 0 or s == len(steps)]
        assert "MFU counts from a peak of" in (run / stage / "log.txt").read_text()


def test_tensorboard_on_request(finished):
    pytest.importorskip("tensorboard")
    assert list((finished / "run" / "small" / "tensorboard").glob("events.*"))
    assert not (finished / "run" / "large" / "tensorboard").exists()


def test_the_expanded_run_starts_where_the_small_one_ended(finished):
    small = [r["eval_loss"] for r in records(finished / "run", "small") if "eval_loss" in r][-1]
    large = next(r["eval_loss"] for r in records(finished / "run", "large") if "eval_loss" in r)
    assert large == pytest.approx(small, abs=1e-4)
    fresh = next(r["eval_loss"] for r in records(finished / "run", "scratch") if "eval_loss" in r)
    assert abs(fresh - small) > 1e-2


def test_finished_stages_are_skipped(finished):
    before = {path: path.stat().st_mtime_ns for path in (finished / "run").rglob("metrics.jsonl")}
    done = lemon("run", finished / "tiny.yaml")
    assert done.returncode == 0 and done.stdout.count("finished already, skipped") == 4
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "run").rglob("metrics.jsonl")}


def test_other_settings_do_not_continue_a_run(finished, capsys):
    code, _, error = cli.lemon(capsys, "run", finished / "tiny.yaml", "stages.small.schedule.peak=0.5")
    assert code == 2 and error.count("\n") == 1
    assert "small: begun with other settings: stage.schedule.peak was 0.001, is now 0.5; " in error
    assert "take another folder (folder=…)" in error


def test_a_run_goes_on_with_other_memory_and_cadence(finished, tmp_path):
    """As after an out-of-memory error, and with a record that lacks a key which the schema has got since. The losses
    are means of those that were recorded step by step; activation checkpointing computes the same numbers again."""
    path, run = tiny_run(tmp_path), tmp_path / "run"
    process = start("train", path, "--stage", "small")
    wait_for(lambda: any(r["step"] >= 6 for r in records(run, "small")))
    children = workers_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive(child) for child in children), 20)
    facts = json.loads((run / "small" / "stage.json").read_text())
    del facts["fingerprint"]["stage"]["precision"]
    (run / "small" / "stage.json").write_text(json.dumps(facts))
    changes = {
        "save_every": "7 steps",
        "evaluate_every": "6 steps",
        "log_every": "3",
        "activation_checkpointing": "true",
    }
    done = lemon("train", path, "--stage", "small", *(f"stages.small.{key}={value}" for key, value in changes.items()))
    assert done.returncode == 0, done.stderr[-4000:]
    expected = {r["step"]: r["loss"] for r in records(finished / "run", "small") if "loss" in r}
    found = [r for r in records(run, "small") if "loss" in r]
    assert sum(r["window"] for r in found) == STEPS and any(r["window"] == 3 for r in found)
    for record in found:
        steps = range(record["step"] - record["window"] + 1, record["step"] + 1)
        assert record["loss"] == pytest.approx(sum(expected[step] for step in steps) / len(steps), rel=1e-12)
    facts = json.loads((run / "small" / "stage.json").read_text())
    assert facts["settings"]["activation_checkpointing"] and facts["flops_per_step"]["recompute"] > 0
    assert [not one["settings"]["activation_checkpointing"] for one in facts["earlier"]] == [True]
    assert facts["fingerprint"]["stage"]["precision"] == "fp32"


def test_another_zero_stage_is_refused_where_the_shards_are_read(tmp_path):
    path, run = tiny_run(tmp_path), tmp_path / "run"
    assert lemon("train", path, "--stage", "small", "stages.small.schedule.horizon=6 steps").returncode == 0
    facts = json.loads((run / "small" / "stage.json").read_text())
    (run / "small" / "stage.json").write_text(json.dumps({**facts, "status": "running"}))
    done = lemon(
        "train", path, "--stage", "small", "stages.small.schedule.horizon=6 steps", "stages.small.zero_stage=1"
    )
    assert (
        done.returncode == 2
        and "written as native ZeRO stage 2, 2 ranks, this stage runs as native ZeRO stage 1" in done.stderr
    )


@rotated(one_in=2, of="victim")
@pytest.mark.parametrize("victim", ["parent", "worker"])
def test_killed_anywhere_it_ends_with_the_same_losses(finished, tmp_path, victim):
    """SIGKILL at several moments: while starting, in the middle of a step, right after a checkpoint, in the large
    stage."""
    path = tiny_run(tmp_path)
    run = tmp_path / "run"
    moments = [
        lambda: run.exists(),
        lambda: any(r["step"] >= 3 for r in records(run, "small")),
        lambda: any(r["step"] >= 11 for r in records(run, "small")),
        lambda: (run / "grown" / "stage.json").exists(),
        lambda: any(r["step"] >= 7 for r in records(run, "large")),
        lambda: any(r["step"] >= 16 for r in records(run, "scratch")),
    ]
    for moment in moments:
        kill_at(moment, start("run", path), victim)
    done = lemon("run", path)
    assert done.returncode == 0, done.stderr[-4000:]
    for stage in ("small", "large", "scratch"):
        assert losses(run, stage) == losses(finished / "run", stage), stage
    for stage in ("small", "grown", "large", "scratch"):
        assert ledger(run, stage) == ledger(finished / "run", stage), stage


LONG = "stages.small.schedule.horizon=5000 steps"
"""Longer than any of these tests looks, so that none races with the end of the training."""


def test_a_second_start_is_refused_while_a_worker_lives(tmp_path):
    path = tiny_run(tmp_path)
    process = start("train", path, "--stage", "small", LONG)
    wait_for(lambda: records(tmp_path / "run", "small"))
    refused = lemon("run", path, LONG)
    assert refused.returncode == 2 and "another process is at work on this run" in refused.stderr
    children = workers_of(process.pid)
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive(child) for child in children), 20)
    assert lemon("prepare", path, LONG).returncode == 0


def test_a_worker_that_dies_takes_the_job_down_with_its_message(tmp_path):
    path = tiny_run(tmp_path)
    process = start("train", path, "--stage", "small", LONG)
    wait_for(lambda: records(tmp_path / "run", "small"))
    os.kill(wait_for(lambda: workers_of(process.pid))[0], signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and "died (SIGKILL: " in said and "Traceback" not in said


def test_divergence_is_told_in_one_line(tmp_path):
    done = lemon(
        "train",
        tiny_run(tmp_path),
        "--stage",
        "small",
        "stages.small.schedule.peak=1e30",
        "stages.small.optimizer.clip=0",
    )
    assert done.returncode == 2 and "lower schedule.peak" in done.stderr and "Traceback" not in done.stderr


def test_two_nodes_on_loopback_give_the_losses_of_one(finished, tmp_path):
    """launch/torchrun.sh, one process on each of two launchers. 1e-5: a rank that has its node to itself runs two
    threads, which sum in another order; measured 1e-8 to 1e-7 after a few steps."""
    path = tiny_run(tmp_path, processes=1)
    both = [two_nodes(path, rank, port) for port in [free_port()] for rank in (0, 1)]
    for process in both:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-4000:]
    for stage in ("small", "large", "scratch"):
        ours, theirs = (
            [r.get("loss", r.get("eval_loss")) for r in records(f / "run", stage)] for f in (tmp_path, finished)
        )
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert (tmp_path / "run" / "report.html").exists()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def two_nodes(path: Path, rank: int, port: int) -> subprocess.Popen:
    """The script itself; the environment it makes is this one, so that nothing is installed here."""
    lines = (
        (ROOT / "launch" / "torchrun.sh")
        .read_text()
        .replace("ensure_environment quickstart", ":")
        .replace("exec lemon", f"exec {sys.executable} -m pipeline")
    )
    script = path.parent / "launch" / f"torchrun-{rank}.sh"
    script.parent.mkdir(exist_ok=True)
    script.write_text(lines)
    (script.parent / "environment.sh").write_text((ROOT / "launch" / "environment.sh").read_text())
    nodes = {"NODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        ["bash", str(script), str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**nodes),
        cwd=ROOT,
    )


def test_a_node_that_fails_takes_the_waiting_one_with_it(tmp_path):
    path = tiny_run(tmp_path, processes=1)
    both = [start("run", path, "data.dataset=/nowhere/at/all", "--nodes", 2, "--node-rank", rank) for rank in (1, 0)]
    try:
        said = [process.communicate(timeout=60)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [2, 2]
    assert said[0].startswith("lemon: node 0 stopped: ") and "/nowhere/at/all" in said[1]


def test_ctrl_c_stops_without_a_traceback(tmp_path):
    path = tiny_run(tmp_path)
    process = start("train", path, "--stage", "small", LONG)
    wait_for(lambda: records(tmp_path / "run", "small"))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said == "lemon: stopped; run the command again to resume\n"


BAD = [
    (["stages.scratch.batch=15"], "stages.scratch: batch 15 is not a multiple of micro_batch 7 x 2 ranks"),
    (["stages.grown.method=stack"], "method 'stack' cannot grow this model: 'stack' grows in depth only"),
    (["stages.small.batch=15"], "stages.small: batch 15 is not a multiple of micro_batch 7 x 2 ranks"),
    (["data.dataset=/nowhere/at/all"], "/nowhere/at/all"),
    (["models.small.patch=3"], "needs a patch size that divides the image size 8, got 3"),
    (["models.small.family=vitt"], "models.small: unknown model family 'vitt'; did you mean 'vit'?"),
    (["models.large.kv_heads=1"], "models.large: models of family 'vit' have no kv_heads, got 1; remove it"),
]


@pytest.mark.parametrize("overrides, complaint", BAD, ids=[b[1][:20] for b in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, capsys, overrides, complaint):
    code, _, error = cli.lemon(capsys, "run", tiny_run(tmp_path), *overrides)
    assert code == 2 and complaint in error and error.count("\n") == 1
    assert not any((tmp_path / "run").glob("*/stage.json"))
