"""Launching on real parts: two hosts that a cable joins (tests/helpers/hosts.py), real torchrun, sshd, pdsh and Slurm.
What was cut, stopped or requeued there gives the numbers of a run that nobody disturbed. Part of .ci/run."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.helpers.cli import lemon_here
from tests.helpers.hosts import Host, Pair, two_hosts
from tests.helpers.runs import losses, records, tiny_run
from tests.helpers.secure_shell import start_sshd
from tests.helpers.slurm import start_slurm
from tests.helpers.waiting import patience, wait_for

pytestmark = pytest.mark.slow
STEPS = 200
"""Of the one stage: so many that a disturbance comes before the last of them, however fast the machine."""
DISTURBED_AT = 7
"""The step; the newest checkpoint of itself is that of step 5."""
LONGEST_END = 180.0
"""Seconds until everything has ended by itself behind a cut: in an evaluation or a save the limit is two minutes
(`hang.pause`), and torchrun gives its workers half a minute more."""
ENVIRONMENT = {"LEMON_VENV": sys.prefix}


def one_stage(folder: Path) -> Path:
    """The config of a training of two processes."""
    stage = yaml.safe_load(tiny_run(folder).read_text())["stages"][0]
    stage["schedule"]["horizon"] = f"{STEPS} steps"
    return tiny_run(folder, stages=[stage])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> list[tuple]:
    """Step, training loss and evaluation loss of the run that nobody disturbs, on as many CPUs as two hosts."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with two_cpus():
        lemon_here("run", one_stage(folder))
    return losses(folder / "run", "small")


@contextmanager
def two_cpus() -> Iterator[None]:
    """More would be more threads, which sum in another order."""
    all_cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(all_cpus)[:2])
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cpus)


def in_mid_run(run: Path) -> bool:
    return any(record["step"] >= DISTURBED_AT for record in records(run, "small"))


def workers_on(host: Host) -> list[int]:
    """Processes that train."""
    running = host.processes().items()
    return [
        pid
        for pid, line in running
        if Path(line.partition(" ")[0]).name.startswith("python") and " -m pipeline " in line
    ]


def said(folder: Path, *names: str) -> str:
    return "\n".join((folder / name).read_text() for name in names)


def torchrun(pair: Pair, path: Path, rendezvous: str) -> list[subprocess.Popen[bytes]]:
    """launch/torchrun.sh on both. What they say goes into files n1-static, …"""
    given = {**ENVIRONMENT, "NODES": "2", "MASTER_ADDR": pair.hosts[0].address, "RDZV": rendezvous, "PROCESSES": "1"}
    return [
        host.start(
            "bash",
            "launch/torchrun.sh",
            path,
            log=path.parent / f"{host.name}-{rendezvous}",
            NODE_RANK=str(rank),
            **given,
        )
        for rank, host in enumerate(pair.hosts)
    ]


def test_torchrun_goes_on_behind_a_cut_cable(undisturbed, tmp_path):
    """On hosts that know themselves as 127.0.1.1 only."""
    path, run = one_stage(tmp_path), tmp_path / "run"
    with two_hosts(tmp_path, named=False) as pair:
        both = torchrun(pair, path, "static")
        wait_for(lambda: in_mid_run(run), 300)
        pair.cut()
        codes = [process.wait(patience(LONGEST_END)) for process in both]
        assert all(codes), said(tmp_path, "n1-static", "n2-static")
        for host, other in (("n1", "n2"), ("n2", "n1")):
            assert re.search(rf"^lemon: .*\b{other}\b", said(tmp_path, f"{host}-static"), re.MULTILINE), host
        wait_for(lambda: not any(host.processes() for host in pair.hosts), patience(10))
        assert len(losses(run, "small")) < len(undisturbed)
        pair.mend()
        codes = [process.wait(300) for process in torchrun(pair, path, "c10d")]
        assert codes == [0, 0], said(tmp_path, "n1-c10d", "n2-c10d")
    assert "as rank 0 of 2 (1 on this node), which meet at 10.77.0.1:" in said(tmp_path, "n1-c10d")
    assert losses(run, "small") == undisturbed


def test_deepspeeds_launcher_over_sshd(undisturbed, tmp_path):
    """By pdsh, until a worker is asked to stop; then by ssh alone."""
    path, run = one_stage(tmp_path), tmp_path / "run"
    with two_hosts(tmp_path) as pair:
        given = {**ENVIRONMENT, **start_sshd(pair, tmp_path)}
        command = ("bash", "launch/hostfile.sh", path)
        launcher = pair.hosts[0].start(*command, log=tmp_path / "pdsh", **given)
        wait_for(lambda: in_mid_run(run) or launcher.poll() is not None, 300)
        for pid in workers_on(pair.hosts[1]):
            os.kill(pid, signal.SIGUSR1)
        assert launcher.wait(120) == 85, said(tmp_path, "pdsh")
        assert len(losses(run, "small")) < len(undisturbed)
        launcher = pair.hosts[0].start(*command, log=tmp_path / "ssh", VIA="ssh", **given)
        assert launcher.wait(300) == 0, said(tmp_path, "ssh")
        wait_for(lambda: not any(workers_on(host) for host in pair.hosts), patience(10))
    assert "started by deepspeed as rank 0 of 2 (1 on this node)" in said(tmp_path, "ssh")
    assert losses(run, "small") == undisturbed


def test_slurm_requeues_what_it_has_asked_to_stop(undisturbed, tmp_path):
    path, run, log = one_stage(tmp_path), tmp_path / "run", tmp_path / "job.log"
    with two_hosts(tmp_path) as pair:
        cluster = start_slurm(pair, tmp_path)
        sizes = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0")
        submit = ("env", *(f"{name}={value}" for name, value in ENVIRONMENT.items()), "sbatch", "--parsable")
        job = cluster.command(*submit, *sizes, f"--output={log}", "launch/slurm.sbatch", path).strip()
        wait_for(lambda: in_mid_run(run), 300)
        cluster.command("scancel", "--signal=USR1", job)
        wait_for(lambda: cluster.job(job)["Restarts"] == "1", patience(60))
        assert len(losses(run, "small")) < len(undisturbed)
        wait_for(lambda: cluster.job(job)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING"), 300)
        assert cluster.job(job)["JobState"] == "COMPLETED", log.read_text()
        wait_for(lambda: not any(workers_on(host) for host in pair.hosts), patience(10))
    assert log.read_text().count("started by srun as rank 0 of 2 (1 on this node), which meet at n1:") == 2
    assert losses(run, "small") == undisturbed
