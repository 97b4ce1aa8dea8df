"""Files and folders that are not what their names say: one line that names them, exit code 2, no traceback."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout
from pipeline.errors import UserError
from tests.helpers.checkpoints import foreign, saved, source, state
from tests.helpers.cli import lemon

MODEL, RANK = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"
STAGE_1, STAGE_3, UNIVERSAL = (
    CheckpointLayout("zero", 1, 2),
    CheckpointLayout("zero", 3, 2),
    CheckpointLayout("universal"),
)
FOREIGN = "its files do not hold what DeepSpeed's do"
Edit = Callable[[dict[str, Any]], object]


def refused(capsys, complaint: str, *command: object) -> None:
    code, _, err = lemon(capsys, *command)
    assert code == 2 and err.startswith("lemon: ") and complaint in err and err.count("\n") == 1, err


def everywhere(capsys, complaint: str, folder: Path, out: Path) -> None:
    """Every command that reads a checkpoint says it, and nothing is written."""
    for command in (
        ["inspect", folder],
        ["check", folder],
        ["reshard", folder, "--out", out],
        ["diff", folder, folder],
    ):
        refused(capsys, complaint, *command)
    assert not out.exists()


def edited(path: Path, edit: Edit) -> None:
    content = torch.load(path, weights_only=False)
    edit(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    "layout, file, edit",
    [
        (STAGE_1, MODEL, lambda model: model.pop("dp_world_size")),
        (STAGE_1, MODEL, lambda model: model.update(param_shapes=[{"a": "x"}])),
        (STAGE_1, RANK, lambda rank: rank.pop("optimizer_state_dict")),
        (STAGE_1, RANK, lambda rank: rank["optimizer_state_dict"]["base_optimizer_state"].update(param_groups=3)),
        (STAGE_1, RANK, lambda rank: rank["optimizer_state_dict"].update(single_partition_of_fp32_groups=[])),
        (STAGE_3, RANK, lambda rank: rank["optimizer_state_dict"].update(fp32_flat_groups=[None, None])),
        (UNIVERSAL, "zero/optimizer_state.pt", lambda state: state.pop("param_groups")),
        (UNIVERSAL, "zero/optimizer_state.pt", lambda state: state.update(group_names=[["a"]])),
        (UNIVERSAL, MODEL, lambda model: model.update(global_steps="many")),
    ],
)
def test_files_of_deepspeed_that_lack_something(tmp_path, capsys, layout, file, edit):
    edited(foreign(tmp_path / "small", without_frozen(), layout) / file, edit)
    everywhere(capsys, FOREIGN, tmp_path / "small", tmp_path / "out")


def without_frozen() -> checkpoints.State:
    """Universal folders hold no frozen parameters."""
    held = state()
    return held.only([name for name in held.tensors if name not in held.frozen])


@pytest.mark.parametrize(
    "content", [{}, [], None, "text", {"module": 3}, {"module": {}, "optimizer": {"param_groups": 3}}]
)
def test_a_pickle_of_something_else(tmp_path, capsys, content):
    """One file alone is what stage 0 leaves."""
    torch.save(content, tmp_path / MODEL)
    for command in ("inspect", "check"):
        code, _, err = lemon(capsys, command, tmp_path)
        assert code == 2 and err.startswith(f"lemon: {tmp_path}: its files ") and err.count("\n") == 1, err


@pytest.mark.parametrize("content", [{}, {"param": 3}, [], None])
def test_a_parameters_file_without_a_tensor(tmp_path, capsys, content):
    folder = foreign(tmp_path / "small", without_frozen(), UNIVERSAL)
    torch.save(content, folder / "zero" / "b" / "fp32.pt")
    everywhere(capsys, f"{folder / 'zero' / 'b' / 'fp32.pt'}: holds no tensor", folder, tmp_path / "out")


def test_moments_of_another_size(tmp_path, capsys):
    """Files of a rank would be cut from them at the wrong places."""
    folder = foreign(tmp_path / "small", without_frozen(), UNIVERSAL)
    torch.save({"param": torch.zeros(4)}, folder / "zero" / "b" / "exp_avg.pt")
    everywhere(capsys, "exp_avg of 'b' has shape (4,), its weights (3,)", folder, tmp_path / "out")


def test_names_without_weights(tmp_path, capsys):
    folder = foreign(tmp_path / "small", without_frozen(), STAGE_1)
    edited(folder / MODEL, lambda model: model.update(shared_params={"tied": ["a"]}))
    everywhere(capsys, "'tied' is tied to '['a']', of which there are no weights", folder, tmp_path / "out")
    held = without_frozen()
    with pytest.raises(UserError, match="here: an optimizer group has 'd', of which there are no weights"):
        replace(held, groups=(replace(held.groups[0], names=("a", "d")),)).require_coherent(Path("here"))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {1: torch.zeros(2)},
        lambda tensors: {name: tensor.to_sparse() for name, tensor in tensors.items()},
        lambda tensors: {name: tensor.to(torch.complex64) for name, tensor in tensors.items()},
    ],
    ids=["numbers for names", "sparse", "complex"],
)
def test_tensors_that_are_no_weights(tmp_path, capsys, change):
    small = saved(tmp_path / "small", "vit")
    torch.save(change(load_file(small / "model.safetensors")), small / "pytorch_model.bin")
    (small / "model.safetensors").unlink()
    everywhere(
        capsys, "pytorch_model.bin: holds something else than named tensors of real numbers", small, tmp_path / "o"
    )


def test_complex_numbers(tmp_path, capsys):
    """A cast would drop their imaginary parts."""
    small = saved(tmp_path / "small", "vit")
    tensors = load_file(small / "model.safetensors")
    save_file({**tensors, "classifier.bias": torch.ones(3, dtype=torch.complex64)}, small / "model.safetensors")
    everywhere(capsys, "'classifier.bias' holds complex numbers", small, tmp_path / "out")


def test_float8_is_compared(tmp_path, capsys):
    """torch computes with none of it; the verdict counts the numbers that differ from their own rounding."""
    for name, dtype in (("small", torch.float8_e4m3fn), ("large", torch.float32)):
        folder = saved(tmp_path / name, "vit")
        tensors = load_file(folder / "model.safetensors")
        tensors = {key: torch.full_like(tensor, 1 / 16).to(dtype) for key, tensor in tensors.items()}
        save_file(tensors, folder / "model.safetensors")
    assert lemon(capsys, "diff", tmp_path / "small", tmp_path / "large")[0] == 0
    tensors["classifier.bias"][1] = 0.25
    save_file(tensors, tmp_path / "large" / "model.safetensors")
    code, out, _ = lemon(capsys, "diff", tmp_path / "small", tmp_path / "large", "--json")
    (worst,) = json.loads(out)["tensors"]["weights"]["worst"]
    assert code == 1 and (worst["numbers"], worst["largest"]) == (1, 0.1875)


def test_folders_that_point_nowhere(tmp_path, capsys):
    (tmp_path / "latest").write_bytes(b"\xff\n")
    refused(capsys, "no such folder", "inspect", tmp_path)
    (tmp_path / "latest").unlink()
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "stage.json").write_text('{"kind": "expand", "origin": ["x"]}')
    refused(capsys, "name one of its stages: stage", "inspect", tmp_path)


def test_a_config_whose_architectures_are_no_list(tmp_path, capsys):
    small = source(tmp_path, STAGE_1)
    (small / "manifest.json").unlink()
    (small / "config.json").write_text('{"model_type": "bert-pre-ln", "architectures": 3}')
    code, out, err = lemon(capsys, "inspect", small)
    assert code == 0 and "bert-pre-ln (no class named)" in out, err
