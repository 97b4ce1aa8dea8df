"""What a worker takes from the environment of its launcher."""

import logging
import os

import pytest
import torch

from pipeline.cli import build_parser
from pipeline.errors import UserError
from pipeline.records import locks, run_folder
from pipeline.training import launcher, process_group


@pytest.mark.parametrize("text", ["abc", "", "-1", "2.5"])
@pytest.mark.parametrize("variable", ["GROUP_RANK", launcher.PARENT, launcher.LOG_LEVEL])
def test_what_is_no_number_is_named(tmp_path, monkeypatch, variable, text):
    monkeypatch.setattr(launcher, "die_with_parent", lambda parent: None)
    monkeypatch.setenv(variable, text)
    with pytest.raises(UserError) as caught:
        launcher.become_worker(tmp_path).close()
    assert str(caught.value).startswith(f"{variable}={text} in the environment: launchers set a whole number there")


@pytest.mark.parametrize("rank, level", [("0", logging.WARNING), ("1", logging.ERROR)])
def test_a_process_of_another_launcher_stays_as_quiet_as_it_was_asked(monkeypatch, rank, level):
    monkeypatch.delenv(launcher.LOG_LEVEL, raising=False)
    monkeypatch.setenv("RANK", rank)
    logger = logging.getLogger("pipeline")
    before = logger.level
    try:
        logger.setLevel(logging.WARNING)
        launcher.take_over_log_level()
        assert logger.level == level
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize("command", [["--local_rank=1", "run", "c.yaml"], ["train", "--local-rank", "1", "c.yaml"]])
def test_the_argument_of_deepspeeds_launcher_is_taken(command):
    """Behind `--module pipeline` it comes first, behind a script of tools/ second. Nobody else needs to know it."""
    assert build_parser().parse_args(command).local_rank == 1
    assert "local" not in build_parser().format_help()


def test_a_worker_that_sees_one_gpu_takes_it(monkeypatch):
    """srun --gpus-per-task; DeepSpeed reads the number from the environment, and compares it with Open MPI's."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(os, "environ", {"LOCAL_RANK": "3", "OMPI_COMM_WORLD_LOCAL_RANK": "3"})
    assert process_group._gpu() == 0
    assert os.environ == {"LOCAL_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0"}


def test_more_workers_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert process_group._gpu() == 3
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(UserError, match=r"^LOCAL_RANK=4: this process sees 4 GPU\(s\); start at most that many"):
        process_group._gpu()


def test_the_place_of_a_traceback_that_was_told_stays(tmp_path):
    """A restart begins anew in another place."""
    for text, stays in (("a message\n", False), ("a summary\nTraceback …\n", True), ("", False)):
        with launcher._failures(tmp_path / ".failures-0") as place:
            (place / "rank-0.txt").write_text(text)
        assert place.exists() is stays
    assert len(list((tmp_path / ".failures-0").iterdir())) == 1


@pytest.mark.parametrize("held", [run_folder.claimed, run_folder.exclusive])
def test_two_starts_of_plain_workers_on_one_run(tmp_path, monkeypatch, held):
    monkeypatch.setattr(locks, "RELEASE", 0.2)
    refused = pytest.raises(UserError, match="another process is at work on this run")
    with held(tmp_path), refused, run_folder.claimed(tmp_path):
        pytest.fail("both are at work")
