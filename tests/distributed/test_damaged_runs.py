"""A stage that resumes from a folder that was damaged, or made by someone who means harm."""

import json
import resource
import shutil

import pytest

from pipeline.cli import main
from tests.helpers import cli
from tests.helpers.cli import lemon_here
from tests.helpers.damage import flip, poison, sealed_again
from tests.helpers.processes import in_a_child
from tests.helpers.rotation import rotated
from tests.helpers.runs import copied, interrupted, ledger, losses


def newest(folder, stage="small"):
    """The checkpoints of a stage, the newest first."""
    return sorted((folder / "run" / stage / "checkpoints").glob("step-*"), reverse=True)


def same_as(run, finished, stage="small"):
    assert losses(run, stage) == losses(finished / "run", stage)
    assert ledger(run, stage) == ledger(finished / "run", stage)


@pytest.fixture
def begun(finished, tmp_path):
    """A run whose small stage has checkpoints of steps 20 and 24, the last, and was not called finished; its config."""
    return interrupted(finished, tmp_path, "small", 24)


def test_one_flipped_bit_costs_some_steps(finished, begun, tmp_path, capfd):
    damaged, whole = newest(tmp_path)
    shard = max(damaged.glob("*optim_states.pt"))
    flip(shard)
    lemon_here("train", begun, "--stage", "small")
    said = capfd.readouterr().out
    assert f"{shard}: its BLAKE3 is not the manifest's" in said and f".damaged-{damaged.name}" in said
    assert damaged.with_name(f".damaged-{damaged.name}").exists() and whole
    same_as(tmp_path / "run", finished)


def test_a_file_that_is_cut_is_seen_before_there_are_workers(finished, begun, tmp_path, capfd):
    damaged, _ = newest(tmp_path)
    shard = max(damaged.glob("*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:-7])
    lemon_here("train", begun, "--stage", "small")
    assert f"{shard}: " in capfd.readouterr().out
    same_as(tmp_path / "run", finished)


def test_all_damaged_is_refused_and_nothing_is_lost(begun, tmp_path, capfd):
    checkpoints = newest(tmp_path)
    for checkpoint in checkpoints:
        flip(max(checkpoint.glob("*optim_states.pt")))
    code, _, error = cli.lemon(capfd, "train", begun, "--stage", "small")
    assert code == 2 and "the stage has no other: bring one back, or remove" in error
    assert checkpoints[-1].exists() and losses(tmp_path / "run", "small")


@rotated(one_in=2, of="file")
@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_a_resume_executes_nothing(begun, tmp_path, capfd, file):
    for checkpoint in newest(tmp_path):
        poison(checkpoint / file, tmp_path / "mark")
        sealed_again(checkpoint)
    code, _, error = cli.lemon(capfd, "train", begun, "--stage", "small")
    assert code == 2 and "cannot be loaded safely (damaged, or it holds code)" in error
    assert not (tmp_path / "mark").exists()


@rotated(one_in=2, of="file")
@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_a_start_from_a_foreign_folder_executes_nothing(finished, tmp_path, capfd, file):
    """It has no manifest, and a pickle in the place of a file."""
    start = tmp_path / "foreign" / "global_step24"
    shutil.copytree(max((finished / "run" / "small" / "checkpoints").iterdir()), start)
    (start / "manifest.json").unlink()
    poison(start / file, tmp_path / "mark")
    config = copied(finished, tmp_path)
    code, _, error = cli.lemon(capfd, "train", config, "--stage", "small", f"stages.small.start={start}")
    assert code == 2 and f"{start / file}: cannot be loaded safely (damaged, or it holds code)" in error, error
    assert not (tmp_path / "mark").exists()


@pytest.mark.slow
def test_a_disk_that_fills_up(begun, tmp_path):
    """A limit on the size of files stands for it: the shards of the next checkpoint do not fit."""

    def limited() -> int:
        shard = max(newest(tmp_path)[0].glob("*optim_states.pt"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (shard.stat().st_size // 2,) * 2)
        return main(["train", str(begun), "--stage", "small"])

    for checkpoint in newest(tmp_path)[:1]:
        shutil.rmtree(checkpoint)  # step 24, which is to be written again
    ended = in_a_child(limited, tmp_path / "said")
    assert ended.code == 2 and "Traceback" not in ended.said, ended.said
    assert "cannot be written (" in ended.said and "make room and run the command again to resume" in ended.said
    assert str(tmp_path / "run") in ended.said


DAMAGE = {
    "lost": lambda lines: lines[:3] + lines[4:],
    "doubled": lambda lines: [*lines[:3], lines[2], *lines[3:]],
    "changed": lambda lines: [lines[0], lines[1].replace('"flops": ', '"flops": 1'), *lines[2:]],
    "gone": lambda lines: [],
}


@rotated(one_in=4, of="damage")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_ledger_that_is_not_what_the_steps_cost(begun, tmp_path, capfd, damage):
    path = tmp_path / "run" / "small" / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(DAMAGE[damage](lines)))
    assert path.read_text() != "".join(lines)
    code, _, error = cli.lemon(capfd, "train", begun, "--stage", "small")
    assert code == 2 and f"{path}: " in error and "lines were lost, doubled or changed" in error


def test_other_data_than_prepared(begun, tmp_path, capfd):
    path = tmp_path / "run" / "data" / "data.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "facts": {**content["facts"], "mean": [0.1]}}))
    code, _, error = cli.lemon(capfd, "train", begun, "--stage", "small")
    assert code == 2 and f"{path}: does not match its own hash" in error
    path.write_text(json.dumps(content))
    images = max(path.parent.rglob("*.bin"), key=lambda file: file.stat().st_size, default=None)
    images = images or max((f for f in path.parent.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    flip(images)
    code, _, error = cli.lemon(capfd, "train", begun, "--stage", "small")
    assert code == 2 and f"{images}: not what was prepared" in error
