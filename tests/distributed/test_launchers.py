"""`lemon run` where another launcher starts every worker: the numbers are those of `lemon run` alone."""

import gc
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

from pipeline import config
from pipeline.expansion import expand
from pipeline.records import run_folder
from pipeline.training import engine, loop, process_group
from pipeline.training.loop import Loop
from pipeline.training.preemption import StopRequest
from pipeline.training.subject import WholeModel
from tests.helpers.cli import environment, environment_kept, lemon_here, run_python
from tests.helpers.launched import of_mpirun, of_srun, task
from tests.helpers.ports import free_port
from tests.helpers.processes import Child, Ended
from tests.helpers.runs import copied, ledger, losses, records, steps_in_all, tiny_run
from tests.helpers.waiting import wait_for

STAGES = ("small", "large")


def chain(finished: Path, folder: Path) -> Path:
    """The config of a training, an expansion and the training behind it."""
    return tiny_run(folder, stages=yaml.safe_load((finished / "tiny.yaml").read_text())["stages"][:3])


def same_as(run: Path, finished: Path, *stages: str) -> None:
    for stage in stages:
        assert losses(run, stage) == losses(finished / "run", stage)
        assert ledger(run, stage) == ledger(finished / "run", stage)


def both(folder: Path, variables: Sequence[dict[str, str]], *arguments: object) -> list[Ended]:
    tasks = [task(folder / f"said-{rank}", given, *arguments) for rank, given in enumerate(variables)]
    return [each.end() for each in tasks]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [of_srun, of_mpirun])
def test_each_task_runs_the_chain(finished, tmp_path, launcher, capfd):
    """Part of .ci/run. One process goes through all stages, with one process group."""
    path, port = chain(finished, tmp_path), free_port()
    assert both(tmp_path, [launcher(rank, port) for rank in (0, 1)], "run", path) == [Ended(0, "")] * 2
    same_as(tmp_path / "run", finished, *STAGES)
    said = capfd.readouterr().out
    assert said.count("started by ") == 1 and f"as rank 0 of 2 (2 on this node), which meet at 127.0.0.1:{port}" in said
    assert said.count("small: step 24 of 24") == 1 and said.count("report: ") == 1
    assert not list((tmp_path / "run").glob(".node-0"))


@pytest.mark.slow
def test_torchrun_starts_the_workers(finished, tmp_path):
    """Part of .ci/run. As users do it, in interpreters of their own."""
    path = chain(finished, tmp_path)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "pipeline")
    done = run_python(*torchrun, "run", path, timeout=300, env=environment(OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stderr[-4000:]
    same_as(tmp_path / "run", finished, *STAGES)
    assert done.stdout.count("started by torchrun as rank 0 of 2 (2 on this node)") == 1


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_the_workers(finished, tmp_path):
    """Part of .ci/run. It puts --local_rank in front of all other arguments."""
    path = copied(finished, tmp_path)
    launch = (
        "-m",
        "deepspeed.launcher.launch",
        "--world_info",
        "eyJsb2NhbGhvc3QiOiBbMCwgMV19",
    )  # {"localhost": [0, 1]}
    more = ("--master_addr", "127.0.0.1", "--master_port", free_port(), "--node_rank", 0, "--module", "pipeline")
    done = run_python(*launch, *more, "train", path, "--stage", "small", timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    same_as(tmp_path / "run", finished, "small")
    assert "started by deepspeed as rank 0 of 2 (2 on this node)" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["small", "scratch"])
def test_the_memory_of_a_stage_is_given_back(finished, tmp_path, stage):
    """ZeRO-2 and ZeRO-3: the process goes on to the next stage, whose model may need all of it. The models' parameters
    alone are 61 and 242 kB."""
    schedule = f"stages.{stage}.schedule"
    loaded = config.load(copied(finished, tmp_path), [f"{schedule}.horizon=2 steps", f"{schedule}.warmup=1 steps"])

    def training() -> int:
        before = bytes_of_tensors()
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        loop.run(WholeModel(loaded, loaded.training_stage(stage)), process_group.join(), StopRequest())
        engine.free()
        kilobytes = (bytes_of_tensors() - before) // 1000
        print(f"{kilobytes} kB are left", file=sys.stderr)
        return int(kilobytes > 20)

    with environment_kept():
        ended = Child(training, tmp_path / "said").end()
    assert ended.code == 0, ended.said


def bytes_of_tensors() -> int:
    """All that Python knows."""
    gc.collect()
    return sum(t.numel() * t.element_size() for t in gc.get_objects() if issubclass(type(t), torch.Tensor))


def test_a_failure_of_rank_0_is_told_to_the_others(tmp_path):
    path, port = tiny_run(tmp_path), free_port()
    ended = both(tmp_path, [of_srun(rank, port) for rank in (0, 1)], "run", path, "data.dataset=/nowhere/at/all")
    assert [each.code for each in ended] == [2, 2]
    assert "/nowhere/at/all" in ended[0].said and ended[1].said.startswith("lemon: rank 0 stopped: ")
    assert all(each.said.count("\n") == 1 for each in ended)


def test_a_second_start_is_refused(finished, tmp_path):
    """While rank 0 of another start is at work."""
    path = copied(finished, tmp_path)
    with run_folder.exclusive(tmp_path / "run"):
        ended = task(tmp_path / "said", of_srun(0, free_port()), "run", path).end()
    assert ended.code == 2 and "another process is at work on this run" in ended.said


def test_half_an_environment_starts_nothing(tmp_path):
    variables = {**of_srun(0, free_port())}
    del variables["SLURM_LOCALID"]
    ended = task(tmp_path / "said", variables, "run", tiny_run(tmp_path)).end()
    assert ended.code == 2 and ended.said.startswith("lemon: SLURM_LOCALID missing in the environment, though srun")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_tasks_that_are_asked_to_stop_between_trainings_end_at_once(finished, tmp_path, monkeypatch):
    """Rank 0 expands, the other waits for it."""
    path, run, port = copied(finished, tmp_path, "small"), tmp_path / "run", free_port()
    begun = tmp_path / "begun"
    monkeypatch.setattr(expand, "into_stage", lambda *arguments: begun.touch() or time.sleep(300))
    tasks = [task(tmp_path / f"said-{rank}", of_srun(rank, port), "run", path) for rank in (0, 1)]
    wait_for(begun.exists)
    os.kill(tasks[0].pid, signal.SIGUSR1)
    ended = [each.end() for each in tasks]
    assert [each.code for each in ended] == [85, 85], ended
    assert "lemon: stopped on SIGUSR1; run the command again to go on" in ended[0].said
    assert "lemon: rank 0 stopped: stopped on SIGUSR1; run the command again to go on" in ended[1].said
    assert not (run / "large").exists()


@pytest.mark.slow
def test_tasks_that_are_asked_to_stop_save_and_end_together(finished, tmp_path, monkeypatch):
    """As Slurm asks all of them, shortly before the end of a job's time."""
    step = Loop._begin_step
    monkeypatch.setattr(Loop, "_begin_step", lambda *arguments: time.sleep(0.2) or step(*arguments))
    path, run, port = copied(finished, tmp_path), tmp_path / "run", free_port()
    command = ("run", path, "stages.small.log_every=1")
    tasks = [task(tmp_path / f"said-{rank}", of_srun(rank, port), *command) for rank in (0, 1)]
    wait_for(lambda: records(run, "small"))
    for each in tasks:
        os.kill(each.pid, signal.SIGUSR1)
    ended = [each.end() for each in tasks]
    assert [each.code for each in ended] == [85, 85], ended
    assert all("which is saved; run the command again to go on" in each.said for each in ended)
    lemon_here("train", path, "--stage", "small")
    assert steps_in_all(run, "small") == steps_in_all(finished / "run", "small")
