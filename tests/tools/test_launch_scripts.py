"""The launch scripts: the same config and overrides whoever starts the workers. What they start is run in
tests/distributed; here they print it."""

import shlex
import socket
import subprocess
from itertools import chain
from pathlib import Path

import psutil
import pytest

from tests.helpers.cli import ROOT, environment, run_python

NODES = {"NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "n0"}
TORCHRUN = "torchrun --nnodes 2 --nproc-per-node auto --max-restarts 0"
JOB = "--module pipeline run c.yaml name=a\\ b"
PRINTED = [
    ("local.sh", {}, "lemon run c.yaml name=a\\ b"),
    ("nodes.sh", NODES, "lemon run c.yaml name=a\\ b --nodes 2 --node-rank 1 --master-addr n0 --master-port 29500"),
    ("torchrun.sh", NODES, f"{TORCHRUN} --node-rank 1 --master-addr n0 --master-port 29500 {JOB}"),
    (
        "torchrun.sh",
        {"NODES": "2", "MASTER_ADDR": "n0", "RDZV": "c10d"},
        f"{TORCHRUN} --rdzv-backend c10d --rdzv-id lemon --rdzv-endpoint n0:29500 {JOB}",
    ),
    ("hostfile.sh", {}, f"deepspeed --hostfile HOSTS --master_port 29500 --launcher pdsh {JOB}"),
    ("slurm.sbatch", {}, "srun --kill-on-bad-exit=0 --wait=300 python -m pipeline run c.yaml name=a\\ b"),
    (
        "slurm.sbatch",
        {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_CPUS_PER_TASK": "8"},
        "srun --kill-on-bad-exit=0 --wait=300 --cpus-per-task=8 python -m pipeline run c.yaml name=a\\ b",
    ),
    (
        "parts.sbatch",
        {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "64"},
        "python -m pipeline c.yaml name=a\\ b --part 3/64",
    ),
    (
        "parts.sbatch",
        {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "2", "PARTS": "64"},
        "python -m pipeline c.yaml name=a\\ b --part 7/64",
    ),
]


@pytest.fixture
def hosts(tmp_path) -> Path:
    file = tmp_path / "hosts"
    file.write_text("# two of them\nw-0 slots=8\n\nw-1 slots=8  # the other\n")
    return file


def launch(script: str, hosts: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "launch" / script), *arguments]
    env = environment(HOSTFILE=str(hosts), **variables)
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=hosts.parent, timeout=60, check=False)


@pytest.mark.parametrize("script, variables, command", PRINTED)
def test_a_script_prints_what_it_would_run(hosts, script, variables, command):
    done = launch(script, hosts, "--print", "c.yaml", "name=a b", **variables)
    assert (done.returncode, done.stdout, done.stderr) == (0, command.replace("HOSTS", str(hosts)) + "\n", "")
    assert list(hosts.parent.iterdir()) == [hosts]


def way(*arguments: object) -> str:
    done = run_python("launch/way.py", *arguments, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_torchrun_is_told_the_way_to_node_0():
    """Loopback's own addresses: 127.0.0.2 is reached from 127.0.0.1, as if it were another host."""
    assert way("127.0.0.2", 29500) == "--local-addr 127.0.0.1\n"
    assert way("no-such-host.invalid", 29500) == "\n"


def test_node_0_is_told_that_it_is():
    """Where this machine has an address that others reach."""
    addresses = {each.address for each in chain(*psutil.net_if_addrs().values()) if each.family == socket.AF_INET}
    if not (own := min(addresses - {"127.0.0.1"}, default="")):
        pytest.skip("no address but loopback's")
    assert way(own, 29500) == f"--local-addr {own} --rdzv-conf is_host=1\n"


def test_without_pdsh_each_host_starts_its_own(hosts):
    carried = hosts.with_name("carried")
    carried.write_text("NCCL_DEBUG=INFO\nA=b c\n")
    done = launch("hostfile.sh", hosts, "--print", "c.yaml", VIA="ssh", DS_ENV_FILE=str(carried))
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["ssh", "w-0"], ["ssh", "w-1"]]
    for remote in (shlex.split(line[2]) for line in lines):
        assert {"--master_addr", "--no_ssh", "--module"} < set(remote)
        at = remote.index("env")
        assert remote[at + 1 : at + 3] == ["NCCL_DEBUG=INFO", "A=b c"] and remote[at + 3].endswith("/bin/deepspeed")


@pytest.mark.parametrize("script", ["local.sh", "nodes.sh", "torchrun.sh", "hostfile.sh", "slurm.sbatch"])
def test_without_a_config_it_says_how_to_use_it(hosts, script):
    done = launch(script, hosts)
    assert done.returncode == 2 and done.stderr.startswith("usage: ") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "script, variables, complaint",
    [
        ("nodes.sh", {}, "set NODES to the number of nodes"),
        ("torchrun.sh", {"NODES": "2"}, "set MASTER_ADDR to the address of node 0"),
        ("torchrun.sh", {"NODES": "2", "MASTER_ADDR": "n0"}, "set NODE_RANK to this node, from 0"),
        ("torchrun.sh", {"RDZV": "etcd"}, "RDZV=etcd: choose static or c10d"),
        ("hostfile.sh", {"HOSTFILE": ""}, "set HOSTFILE to a file"),
        ("parts.sbatch", {}, "start it as an array: sbatch --array=1-N"),
        ("parts.sbatch", {"SLURM_ARRAY_TASK_ID": "1"}, "set PARTS to how many there are in all"),
        ("hostfile.sh", {"VIA": "mpi"}, "VIA=mpi: choose pdsh or ssh"),
    ],
)
def test_what_is_unset_is_named(tmp_path, script, variables, complaint):
    command = ["bash", str(ROOT / "launch" / script), "--print", "c.yaml"]
    env = environment(**{"HOSTFILE": str(tmp_path), **variables})
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode != 0 and complaint in done.stderr and done.stdout == ""
