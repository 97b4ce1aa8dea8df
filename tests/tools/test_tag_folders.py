"""Which files of a tag folder are the checkpoint: parts of models are refused, what an earlier save left is named."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import in_memory
from tests.helpers.checkpoints import foreign, state
from tests.helpers.cli import lemon

MODEL = "mp_rank_00_model_states.pt"
CUT = "zero_pp_rank_0_mp_rank_00_model_states.pt"
PLAIN, BF16 = "zero_pp_rank_{}_mp_rank_00_optim_states.pt", "bf16_zero_pp_rank_{}_mp_rank_00_optim_states.pt"


def older() -> State:
    """Other weights than those of `state`."""
    now = state()
    return replace(now, tensors=in_memory((name, tensor.tensor() - 1) for name, tensor in now.tensors.items()))


def saved_over(folder: Path, first: CheckpointLayout, last: CheckpointLayout) -> Path:
    """Two saves under one tag: what has the same name is of the last."""
    foreign(folder, older(), first)
    foreign(folder.with_name("last"), state(), last)
    shutil.copytree(folder.with_name("last"), folder, dirs_exist_ok=True)
    return folder


def refused(capsys, folder: Path, *complaints: str) -> None:
    out = folder.with_name("out")
    for command in (
        ["inspect", folder],
        ["check", folder],
        ["reshard", folder, "--out", out],
        ["diff", folder, folder],
    ):
        code, _, err = lemon(capsys, *command)
        assert code == 2 and err.startswith("lemon: ") and err.count("\n") == 1, err
        assert all(complaint in err for complaint in (str(folder), *complaints)), err
    assert not out.exists()


PARTS = {
    "mp_rank_01_model_states.pt": ("tensor parallel over 2 ranks", "merge first: python -m deepspeed"),
    "zero_pp_rank_0_mp_rank_03_optim_states.pt": ("tensor parallel over 4 ranks", "merge first"),
    "bf16_zero_pp_rank_1_mp_rank_01_optim_states.pt": ("tensor parallel over 2 ranks",),
    "layer_00-model_states.pt": ("pipeline parallel", "'layer_00-model_states.pt'"),
    "layer_03-model_00-model_states.pt": ("pipeline parallel",),
    "expp_rank_0_mp_rank_00_optim_states.pt": ("experts (MoE)",),
    "layer_0_expert_3_mp_rank_00_model_states.pt": ("experts (MoE)", "'layer_0_expert_3_mp_rank_00_model_states.pt'"),
    "expert_0_mp_rank_00_model_states.pt": ("experts (MoE)",),
    "zero_pp_rank_x_mp_rank_00_optim_states.pt": ("not named as DeepSpeed names its files",),
    "zero_pp_rank_0_mp_rank_00optim_states.pt": ("not named as DeepSpeed names its files",),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("stage", [1, 3])
def test_parts_of_a_model_are_refused(tmp_path, capsys, stage, name):
    folder = foreign(tmp_path / "small", state(), CheckpointLayout("zero", stage, 1))
    torch.save({}, folder / name)
    refused(capsys, folder, *PARTS[name])


@pytest.mark.parametrize(
    "said, complaint",
    [
        ({"mp_world_size": 2}, "tensor parallel over 2 ranks"),
        ({"checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 4}}, "tensor parallel over 4 ranks"),
        ({"checkpoint_parallel_dimensions": {"pp_degree": 2, "tp_degree": 1}}, "pipeline parallel over 2 ranks"),
    ],
)
def test_a_part_that_lies_alone_is_refused(tmp_path, capsys, said, complaint):
    folder = foreign(tmp_path / "small")
    torch.save({**torch.load(folder / MODEL, weights_only=False), **said}, folder / MODEL)
    refused(capsys, folder, complaint)


def require_last(capsys, folder: Path, left: set[str]) -> None:
    """What is read is the last save; the files of the first are named, and in the manifest."""
    held, last = checkpoints.raw(folder), state()
    assert all(torch.equal(held.tensors[name].tensor(), last.tensors[name].tensor()) for name in last.tensors)
    code, out, _ = lemon(capsys, "reshard", folder, "--out", folder.with_name("out"))
    (line,) = [line for line in out.splitlines() if "are no part of the checkpoint and left behind" in line]
    assert code == 0 and set(line.split(": ")[-1].split(", ")) == left
    recorded = json.loads((folder.with_name("out") / "manifest.json").read_text())["left_behind"]
    assert [f"reshard: {said}" for said in recorded] == [line]
    assert lemon(capsys, "check", folder)[0] == 0
    assert all(name in "".join(lemon(capsys, "inspect", folder)[1].split()) for name in left)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("first", [False, True], ids=["fp32 first", "bf16 first"])
def test_a_save_in_another_precision_under_the_same_tag(tmp_path, capsys, stage, first):
    layouts = [CheckpointLayout("zero", stage, 2, bf16=bf16) for bf16 in (first, not first)]
    folder = saved_over(tmp_path / "small", *layouts)
    require_last(capsys, folder, {(BF16 if first else PLAIN).format(rank) for rank in range(2)})


@pytest.mark.parametrize("stage", [2, 3])
def test_ranks_of_a_larger_world_before(tmp_path, capsys, stage):
    folder = saved_over(tmp_path / "small", CheckpointLayout("zero", stage, 3), CheckpointLayout("zero", stage, 1))
    models = {f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in (1, 2)} if stage == 3 else set()
    require_last(capsys, folder, models | {PLAIN.format(rank) for rank in (1, 2)})


def test_saves_of_two_kinds_of_stages_are_refused(tmp_path, capsys):
    folder = saved_over(tmp_path / "small", CheckpointLayout("zero", 3, 1), CheckpointLayout("zero", 2, 1))
    refused(capsys, folder, MODEL, CUT, "remove the files of the older one")
    (folder / MODEL).unlink()
    refused(capsys, folder, "of ZeRO stage 2", "files of two checkpoints are mixed")


def test_stage_0_over_an_older_save_with_shards(tmp_path):
    """It writes one file with everything."""
    folder = foreign(tmp_path / "small", older(), CheckpointLayout("zero", 1, 1))
    weights = {name: tensor.tensor() for name, tensor in state().tensors.items()}
    groups = [{"params": [0, 1, 2], "lr": 0.1, "betas": (0.9, 0.98)}]
    optimizer = {"state": {n: {"exp_avg": torch.zeros(weights[k].shape)} for n, k in enumerate("abc")}}
    model = {"module": weights, "optimizer": {**optimizer, "param_groups": groups}, "dp_world_size": 1}
    torch.save(model, folder / MODEL)
    assert torch.equal(checkpoints.raw(folder).tensors["a"].tensor(), weights["a"])
    assert PLAIN.format(0) in " ".join(checkpoints.raw(folder).remarks())


@pytest.mark.parametrize(
    "layout", [CheckpointLayout("zero", 2, 1), CheckpointLayout("universal")], ids=lambda i: i.name
)
def test_other_files_with_tensors_are_named(tmp_path, capsys, layout):
    folder = foreign(tmp_path / "small", state(), layout)
    names = {"pytorch_model.bin", "random_states_0.pkl", "rng.pth", "scheduler.pt"}
    for name in names:
        torch.save({}, folder / name)
    require_last(capsys, folder, names)
