"""Trainings that start again by themselves after a fault: on the same workers, and on the nodes that are left."""

import os
import re
import signal

import pytest
import yaml

from pipeline.records.run_folder import StageFolder
from tests.helpers.cli import start_lemon
from tests.helpers.ports import free_port
from tests.helpers.processes import alive, workers_of
from tests.helpers.runs import ledger, same_losses, steps_in_all, tiny_run
from tests.helpers.waiting import wait_for


def at(run, step):
    counter = StageFolder(run / "small").counter
    return lambda: counter.path.exists() and counter.read() >= step


@pytest.mark.slow
def test_a_worker_that_was_killed_costs_the_steps_since_the_last_checkpoint(finished, tmp_path, capfd):
    """Two kills, of which the second comes behind a newer checkpoint, are within `restarts: 1`."""
    path, run = tiny_run(tmp_path, restarts=1), tmp_path / "run"
    command = start_lemon(tmp_path / "said", "train", path, "--stage", "small")
    for step in (3, 11):
        wait_for(at(run, step))
        os.kill(workers_of(command.pid)[-1], signal.SIGKILL)
    ended = command.end()
    assert ended.code == 0, ended.said
    lines = re.findall(
        r"small: worker \d died .*; starting again from step (\d+) \(restarts left: 0\)", capfd.readouterr().out
    )
    first, second = map(int, lines)
    assert first < second <= first + 10 and second % 5 == 0 and ended.said == ""
    same_losses(tmp_path, finished, "small")
    assert ledger(run, "small") == ledger(finished / "run", "small")
    assert steps_in_all(run, "small") >= steps_in_all(finished / "run", "small") + 4


@pytest.mark.slow
def test_a_lost_node_is_not_waited_for_longer_than_the_config_says(finished, tmp_path, capfd):
    """The other goes on with half of the ranks, the same micro-batches, and the same losses. Part of .ci/run."""
    stages = yaml.safe_load((finished / "tiny.yaml").read_text())["stages"][:1]
    settings = {"restarts": 1, "node_timeout": "2 seconds", "stages": stages}
    path, run, port = tiny_run(tmp_path, processes=1, **settings), tmp_path / "run", free_port()
    command = ("run", path, "--nodes", "1:2", "--master-port", port, "--node-rank")
    first, second = [start_lemon(tmp_path / f"said-{rank}", *command, rank) for rank in (0, 1)]
    wait_for(at(run, 12))
    workers = workers_of(second.pid)
    os.kill(second.pid, signal.SIGKILL)
    ended = first.end()
    assert ended.code == 0, ended.said
    assert "small: going on with 1 of 2 nodes, without node 1" in capfd.readouterr().out
    assert not any(map(alive, workers))
    same_losses(tmp_path, finished, "small")
    assert [start.settings.world_size for start in StageFolder(run / "small").facts.starts] == [2, 1]
