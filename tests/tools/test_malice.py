"""Loading never executes code: a malicious pickle in any file of a checkpoint is refused by the file's name."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.layouts import zero_format
from tests.helpers.checkpoints import foreign, reseal, source, state
from tests.helpers.cli import lemon
from tests.helpers.damage import Malicious

LAYOUTS = {
    "1 on 2": CheckpointLayout("zero", 1, 2),
    "2 on 2, bf16": CheckpointLayout("zero", 2, 2, bf16=True),
    "3 on 2": CheckpointLayout("zero", 3, 2),
    "universal": CheckpointLayout("universal"),
}


def plain(folder: Path) -> Path:
    """What a DeepSpeed script without a partitioned optimizer leaves: one file."""
    folder.mkdir()
    torch.save(
        {"module": {"a": torch.zeros(2)}, "dp_world_size": 1, "optimizer": None}, folder / zero_format.model_file(0)
    )
    return folder


def made(folder: Path, name: str) -> Path:
    return plain(folder) if name == "0" else foreign(folder, state(), LAYOUTS[name])


@pytest.mark.parametrize("name", ["0", *LAYOUTS])
def test_every_file_of_every_layout(tmp_path, capsys, name):
    files = sorted(path.relative_to(tmp_path / "whole") for path in made(tmp_path / "whole", name).rglob("*.pt"))
    assert len(files) == {"0": 1, "1 on 2": 3, "2 on 2, bf16": 3, "3 on 2": 4, "universal": 15}[name]
    for number, file in enumerate(files):
        folder = made(tmp_path / str(number), name)
        for content in (Malicious(tmp_path / "mark"), {"param": torch.zeros(3), "more": Malicious(tmp_path / "mark")}):
            torch.save(content, folder / file)
            code, out, err = lemon(capsys, "check", folder)
            assert code == 2 and err.count("\n") == 1 and not out, err
            assert f"{folder / file}: cannot be loaded safely (damaged, or it holds code): it holds " in err, err
            for command in (
                ["inspect", folder],
                ["reshard", folder, "--out", tmp_path / "out", "--zero-stage", "2"],
                ["diff", folder, folder],
            ):
                lemon(capsys, *command)  # what needs the file refuses it, what does not goes on: nothing runs it
                assert not (tmp_path / "mark").exists()


def test_the_mark_is_left_by_what_executes(tmp_path):
    """The test above can fail."""
    torch.save(Malicious(tmp_path / "mark"), tmp_path / "file.pt")
    torch.load(tmp_path / "file.pt", weights_only=False)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("size", [10, 300_000_000])
def test_a_small_archive_that_becomes_a_large_one(tmp_path, capsys, size):
    """torch writes its records as they are; one that is compressed is not opened, whatever it would become."""
    folder = foreign(tmp_path / "small", state(), LAYOUTS["1 on 2"])
    path = folder / "mp_rank_00_model_states.pt"
    torch.save(torch.load(path, weights_only=False), path)  # with torch's own checksums
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
        archive.writestr(f"{next(iter(records)).partition('/')[0]}/data/more", bytes(size))
    assert path.stat().st_size < 1_000_000
    for command in (["check", folder], ["inspect", folder], ["reshard", folder, "--out", tmp_path / "out"]):
        code, out, err = lemon(capsys, *command)
        assert code == 2 and not out and err.count("\n") == 1, err
        assert f"{path}: '" in err and "in it is compressed (" in err and "which torch never writes" in err, err


OUTSIDE = ["../../../outside", "/outside", "a/../../outside", "zero/x", ".", "..", "", "nul\0"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("layout", ["universal", "zero"])
def test_no_name_of_a_tensor_becomes_a_path(tmp_path, capsys, name, layout):
    """A parameter's name is that of a folder in universal files."""
    held = state().renamed({"a": name})
    source = foreign(tmp_path / "source", held, LAYOUTS["1 on 2"])
    before = sorted(tmp_path.rglob("*"))
    code, out, err = lemon(capsys, "reshard", source, "--out", tmp_path / "deep" / "er" / "out", "--format", layout)
    assert code == 2 and err.count("\n") == 1 and not out
    assert f"{source}: a tensor is called {name!r}, which is a path and no name of a module's tensor" in err
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "deep"] == before


@pytest.mark.parametrize("name", ["../../etc/passwd", "/dev/zero", "a//b", "./config.json"])
def test_no_name_of_a_manifest_leads_out_of_its_folder(tmp_path, capsys, name):
    folder = source(tmp_path, LAYOUTS["1 on 2"])
    content = json.loads((folder / "manifest.json").read_text())
    content["files"][name] = {"size": 0, "sha256": ""}
    reseal(folder, content)
    code, out, err = lemon(capsys, "check", folder)
    assert code == 2 and not out and "this leads out of the folder; the manifest is damaged" in err


def test_what_is_no_file_is_not_read(tmp_path, capsys):
    """A link to an endless device has size 0, as an empty file has."""
    folder = source(tmp_path, LAYOUTS["1 on 2"])
    (folder / "endless").symlink_to("/dev/zero")
    content = json.loads((folder / "manifest.json").read_text())
    content["files"]["endless"] = {"size": 0, "sha256": ""}
    reseal(folder, content)
    code, out, err = lemon(capsys, "check", folder)
    assert code == 2 and not out and f"{folder / 'endless'}: no regular file" in err
