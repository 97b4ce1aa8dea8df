"""Native files as other optimizers of DeepSpeed, or other settings, write them."""

from pathlib import Path

import pytest
import torch

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout
from tests.helpers.checkpoints import foreign, state
from tests.helpers.cli import lemon

MODEL = "mp_rank_00_model_states.pt"


def edited(folder: Path, edit) -> Path:
    for path in folder.glob("*optim_states.pt"):
        content = torch.load(path, weights_only=False)
        edit(content["optimizer_state_dict"])
        torch.save(content, path)
    return folder


def padded(inner: dict) -> None:
    """As DeepSpeed's BF16_Optimizer leaves it: no stage, and the padding left in the weights."""
    del inner["zero_stage"]
    flats = zip(inner["single_partition_of_fp32_groups"], inner["group_paddings"], strict=True)
    inner["single_partition_of_fp32_groups"] = [torch.cat((flat, torch.zeros(more))) for flat, more in flats]


def test_bf16_optimizer_is_read_like_stage_1(tmp_path, capsys):
    before = state()
    folder = edited(foreign(tmp_path / "small", before, CheckpointLayout("zero", 1, 3, bf16=True)), padded)
    for command in (["inspect", folder], ["check", folder], ["reshard", folder, "--out", tmp_path / "out"]):
        code, _, err = lemon(capsys, *command)
        assert code == 0, err
    after = checkpoints.raw(tmp_path / "out")
    assert all(torch.equal(after.tensors[name].tensor(), tensor.tensor()) for name, tensor in before.tensors.items())
    for slot, tensors in before.slots.items():
        assert all(torch.equal(after.slots[slot][name].tensor(), tensor.tensor()) for name, tensor in tensors.items())


def test_elastic_checkpoints_are_refused(tmp_path, capsys):
    folder = edited(foreign(tmp_path / "small"), lambda inner: inner.update(base_optimizer_state=[{}]))
    code, _, err = lemon(capsys, "inspect", folder)
    assert code == 2 and "saved with elastic_checkpoint" in err and err.count("\n") == 1, err


@pytest.mark.parametrize("kept", [False, True])
def test_frozen_parameters_that_were_left_out(tmp_path, capsys, kept):
    """As a Trainer saves adapters: of the frozen model its tied names are left, with their numbers or without."""
    folder, numbers = foreign(tmp_path / "small"), torch.arange(6.0).reshape(2, 3).bfloat16()
    model = torch.load(folder / MODEL, weights_only=False)
    model["shared_params"] |= {"head.weight": "embedding.weight"}
    model["module"] |= {"head.weight": numbers} if kept else {}
    torch.save(model, folder / MODEL)
    said = "'embedding.weight', to which 'head.weight' is tied, is not in the files"
    for command in (["inspect", folder], ["reshard", folder, "--out", tmp_path / "out"]):
        code, out, err = lemon(capsys, *command)
        assert code == 0 and said in " ".join(out.split()), out + err
    after = checkpoints.raw(tmp_path / "out")
    assert after.aliases == state().aliases and after.frozen == (*state().frozen, *(["head.weight"] * kept))
    assert not kept or torch.equal(after.tensors["head.weight"].tensor(), numbers)


@pytest.mark.parametrize("place", ["weights", "buffer"])
def test_tensors_without_numbers_are_refused(tmp_path, capsys, place):
    folder = foreign(tmp_path / "small")
    if place == "weights":
        edited(
            folder, lambda inner: inner["single_partition_of_fp32_groups"].__setitem__(0, torch.empty(3, device="meta"))
        )
    else:
        model = torch.load(folder / MODEL, weights_only=False)
        model["module"]["mask"] = torch.empty(4, device="meta")
        torch.save(model, folder / MODEL)
    code, _, err = lemon(capsys, "inspect", folder)
    assert code == 2 and "is a tensor on the meta device" in err and err.count("\n") == 1, err


@pytest.mark.parametrize("layout", ["zero", "universal", "huggingface"])
def test_the_last_line_says_how_to_load_it(tmp_path, capsys, layout):
    """`latest` is not written: a script that loads without a tag would find nothing."""
    folder, out = foreign(tmp_path / "small"), tmp_path / "ours" / "two"
    code, said, _ = lemon(capsys, "reshard", folder, "--out", out, "--format", layout)
    how = f"load it with engine.load_checkpoint('{out.parent}', tag='{out.name}')"
    assert (how in " ".join(said.split())) is (code == 0) is (layout != "huggingface")
