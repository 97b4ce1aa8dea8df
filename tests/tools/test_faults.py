"""What survives: a tool killed at every phase of writing, a full disk, two tools at one place."""

import resource
import shutil
import signal
from pathlib import Path

import pytest

from pipeline import checkpoints
from pipeline.checkpoints import manifest, publish
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.records import file_hashes
from tests.helpers.checkpoints import saved, target_config_file
from tests.helpers.cli import lemon
from tests.helpers.killed import run_killed
from tests.helpers.processes import in_a_child
from tests.helpers.rotation import rotated

POINTS = ["opened", "midway", "files", "verified", "manifest", "renamed"]


def commands(folder: Path) -> dict[str, list[str]]:
    small = saved(folder / "small", "bert-pre-ln", vocab=4000)
    target = target_config_file(folder / "target.json", "bert-pre-ln", vocab=4000, hidden=20, heads=5, mlp=33, layers=3)
    return {
        "expand": [
            "expand",
            "--source",
            str(small),
            "--target",
            str(target),
            "--out",
            str(folder / "large"),
            "--world-size",
            "3",
        ],
        "reshard": ["reshard", str(small), "--out", str(folder / "large"), "--zero-stage", "2"],
    }


@rotated(one_in=2, of=("command", "point"), alike=lambda command, point: point)
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("command", ["expand", "reshard"])
def test_a_killed_tool_leaves_all_or_nothing(tmp_path, capsys, command, point):
    arguments = commands(tmp_path)[command]
    before = file_hashes.hashes(tmp_path / "small", manifest.listing(tmp_path / "small"), "blake3")
    killed = run_killed(point, *arguments, said=tmp_path.with_suffix(".said"))
    assert killed.code == -signal.SIGKILL, killed.said
    assert file_hashes.hashes(tmp_path / "small", list(before), "blake3") == before
    if point == "renamed":
        manifest.verify(tmp_path / "large")
        return
    assert not (tmp_path / "large").exists() and not publish.complete(tmp_path)
    with pytest.raises(UserError, match="no complete checkpoint"):
        checkpoints.locate(tmp_path)
    code, _, err = lemon(capsys, *arguments)
    assert code == 0, err
    manifest.verify(tmp_path / "large")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["large", "small", "target.json"]


def test_a_killed_worker_is_reported(tmp_path):
    arguments = commands(tmp_path)["reshard"]
    killed = run_killed("worker", *arguments, "--workers", 2, said=tmp_path.with_suffix(".said"))
    assert killed.code == 2
    assert "a worker process was killed while writing (out of memory?); use fewer workers" in killed.said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "target.json"]


@pytest.mark.parametrize("command", ["expand", "reshard"])
def test_a_disk_that_fills_up(tmp_path, command):
    """A limit on the size of files stands for the full disk: the write fails in the same place with the same kind."""
    arguments = commands(tmp_path)[command]

    def limited() -> int:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return main(arguments)

    stopped = in_a_child(limited, tmp_path.with_suffix(".said"))
    assert stopped.code == 2 and stopped.said.count("lemon:") == 1, stopped.said
    assert "cannot be written" in stopped.said and "make room or choose another place" in stopped.said
    assert "Traceback" not in stopped.said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "target.json"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path, capsys, monkeypatch):
    arguments = commands(tmp_path)["reshard"]
    real = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: real(path)._replace(free=1000))
    code, _, err = lemon(capsys, *arguments)
    assert code == 2 and "KiB, 1000 bytes are free; make room or choose another place" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "target.json"]


def test_more_ranks_than_there_is_work_for(tmp_path, capsys):
    arguments = commands(tmp_path)["reshard"]
    code, _, err = lemon(capsys, *arguments, "--format", "zero", "--world-size", 5000)
    assert code == 2 and "world size 5000: each rank would have 10 of 54,584" in err and "choose at most 256" in err, (
        err
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "target.json"]


@pytest.mark.parametrize("command", ["expand", "reshard"])
def test_a_damaged_source(tmp_path, capsys, command):
    """One bit of its numbers: hashed while the result is written, refused before that is published."""
    arguments = commands(tmp_path)[command]
    assert lemon(capsys, "reshard", tmp_path / "small", "--out", tmp_path / "source", "--world-size", "2")[0] == 0
    path = tmp_path / "source" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, _, err = lemon(capsys, *(tmp_path / "source" if word.endswith("small") else word for word in arguments))
    assert (
        code == 2 and f"{path}: its BLAKE3 is not the manifest's; the file is damaged" in err and err.count("\n") == 1
    ), err
    assert not (tmp_path / "large").exists() and not list(tmp_path.glob(".staging*"))


def test_two_tools_at_one_place(tmp_path, capsys):
    arguments = commands(tmp_path)["expand"]
    with publish.writing(tmp_path / "large") as staged:
        (staged / "half").write_text("of something")
        code, _, err = lemon(capsys, *arguments)
        assert code == 2 and "large: another process is writing it; wait for it or choose another --out" in err
        assert (staged / "half").exists()
    assert lemon(capsys, *arguments)[0] == 0
