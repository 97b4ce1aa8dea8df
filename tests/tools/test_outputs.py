"""A place to write to that cannot be written: one line that names it, exit code 2, and nothing is left."""

import json
import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.records import run_folder
from tests.helpers.checkpoints import saved, target_config_file
from tests.helpers.cli import lemon

LONG = "n" * 300


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint, a target for it, a file, a dead link and a pipe."""
    saved(tmp_path / "small", "vit")
    target_config_file(tmp_path / "target.json", "vit", hidden=24, heads=6, mlp=48)
    (tmp_path / "README.md").write_text("kept")
    (tmp_path / "link").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


def command(name: str, folder: Path) -> list[object]:
    growth = ["--source", folder / "small", "--target", folder / "target.json"]
    return [name, *(growth if name in ("plan", "expand") else [folder / "small"])]


def refused(capsys, folder: Path, name: str, out: Path) -> str:
    before = sorted(path.name for path in folder.iterdir())
    code, _, err = lemon(capsys, *command(name, folder), "--out", out)
    assert code == 2 and err.startswith(f"lemon: {out}: ") and err.count("\n") == 1, err
    assert sorted(path.name for path in folder.iterdir()) == before and (folder / "README.md").read_text() == "kept"
    return err


@pytest.mark.parametrize("name", ["expand", "reshard", "export", "plan"])
@pytest.mark.parametrize("out, reason", [("README.md/x", "Not a directory"), (LONG, "File name too long")])
def test_a_place_that_cannot_be_made(folder, capsys, name, out, reason):
    assert f"cannot be written ({reason}" in refused(capsys, folder, name, folder / out)


@pytest.mark.parametrize("name", ["expand", "reshard", "export"])
def test_a_dead_link_is_there_already(folder, capsys, name):
    """Otherwise the finished folder could not take its place."""
    assert "exists already; choose another --out" in refused(capsys, folder, name, folder / "link")


@pytest.mark.parametrize(
    "out, reason",
    [
        ("none/plan.json", "cannot be written (No such file or directory"),
        ("small", "exists and is no file"),
        ("pipe", "exists and is no file"),
        ("plan.safetensors", "a plan is JSON"),
    ],
)
def test_a_plan_that_cannot_be_saved(folder, capsys, out, reason):
    assert reason in refused(capsys, folder, "plan", folder / out)


def test_a_plan_is_written_where_a_link_points_to(folder, capsys):
    (folder / "kept").mkdir()
    (folder / "plan.json").symlink_to(folder / "kept" / "plan.json")
    code, _, err = lemon(capsys, *command("plan", folder), "--out", folder / "plan.json")
    assert code == 0, err
    assert (folder / "plan.json").is_symlink() and json.loads((folder / "kept" / "plan.json").read_text())["needs"]


def test_a_file_of_the_source_that_cannot_be_read(folder, capsys, monkeypatch):
    """What fails while the result is written names the file that it fails at."""
    (folder / "small" / "preprocessor_config.json").write_text("{}")

    def closed(source: Path, target: Path) -> None:
        raise PermissionError(13, os.strerror(13), str(source))

    monkeypatch.setattr("shutil.copyfile", closed)
    said = refused(capsys, folder, "expand", folder / "large")
    assert f"(Permission denied: {folder / 'small' / 'preprocessor_config.json'})" in said


def test_a_run_folder_that_cannot_be_made(folder):
    with (
        pytest.raises(UserError, match=r"README.md/run: cannot be written \(Not a directory.*folder=…$"),
        run_folder.exclusive(folder / "README.md" / "run"),
    ):
        pass
