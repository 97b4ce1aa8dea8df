"""Loading never executes code: a malicious pickle in any file of a checkpoint is refused by the file's name."""

from pathlib import Path

import pytest
import torch

from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.layouts import zero_format
from tests.helpers.checkpoints import foreign, state
from tests.helpers.cli import lemon

LAYOUTS = {
    "1 on 2": CheckpointLayout("zero", 1, 2),
    "2 on 2, bf16": CheckpointLayout("zero", 2, 2, bf16=True),
    "3 on 2": CheckpointLayout("zero", 3, 2),
    "universal": CheckpointLayout("universal"),
}


class Malicious:
    """Leaves a mark where it is unpickled by anything that executes code."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


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
