"""Several nodes, each with a command of its own, on loopback."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.helpers.cli import ROOT, environment, start_lemon
from tests.helpers.ports import free_port
from tests.helpers.processes import Ended
from tests.helpers.runs import same_losses, tiny_run


@pytest.mark.slow
def test_two_nodes_on_loopback_give_the_losses_of_one(finished, tmp_path):
    """A whole chain, one process on each of two nodes. Part of .ci/run."""
    stages = yaml.safe_load((finished / "tiny.yaml").read_text())["stages"]
    path = tiny_run(tmp_path, processes=1, stages=stages[:3])
    options = ("--nodes", 2, "--master-port", free_port())
    both = [start_lemon(tmp_path / f"said-{rank}", "run", path, *options, "--node-rank", rank) for rank in (0, 1)]
    assert [process.end() for process in both] == [Ended(0, ""), Ended(0, "")]
    same_losses(tmp_path, finished, "small", "large")
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("script, more", [("nodes", {}), ("torchrun", {}), ("torchrun", {"RDZV": "c10d"})])
def test_the_launch_scripts_start_them(finished, tmp_path, script, more):
    """On each of two nodes; commands and workers are processes of their own. Part of .ci/run."""
    stages = yaml.safe_load((finished / "tiny.yaml").read_text())["stages"]
    path = tiny_run(tmp_path, processes=1, stages=stages[:1])
    both = [one_node(script, path, rank, port, more) for port in [free_port()] for rank in (0, 1)]
    for process in both:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said[-4000:]
    same_losses(tmp_path, finished, "small")


def one_node(name: str, path: Path, rank: int, port: int, more: dict[str, str]) -> subprocess.Popen:
    """The script, in the environment of this process."""
    nodes = {"NODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        ["bash", f"launch/{name}.sh", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**nodes, PROCESSES="1", LEMON_VENV=sys.prefix, **more),
        cwd=ROOT,
    )


def test_a_node_that_fails_takes_the_waiting_one_with_it(tmp_path):
    path = tiny_run(tmp_path, processes=1)
    command = ("run", path, "data.dataset=/nowhere/at/all", "--nodes", 2, "--node-rank")
    both = [start_lemon(tmp_path / f"said-{rank}", *command, rank) for rank in (1, 0)]
    waiting, failing = [process.end() for process in both]
    assert (waiting.code, failing.code) == (2, 2)
    assert waiting.said.startswith("lemon: node 0 stopped: ") and "/nowhere/at/all" in failing.said
