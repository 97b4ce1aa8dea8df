"""float64 weights and moments: results hold float32, and what that loses is named, in a line and in the manifest."""

from pathlib import Path

import pytest
import torch

from pipeline import checkpoints
from pipeline.checkpoints import manifest
from tests.helpers.checkpoints import change, saved, target_config_file
from tests.helpers.cli import lemon

LOST = "tensors hold float64 numbers, of which what float32 cannot hold is left behind: "
DIGITS = "model.norm.weight"


def doubled(folder: Path, **values: float) -> Path:
    """A Hugging Face folder in float64. values: of the first number of some tensors."""

    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors.update({name: tensor.double() for name, tensor in tensors.items()})
        for name, value in values.items():
            tensors[name].view(-1)[0] = value

    return change(saved(folder, "llama"), widen)


def commands(folder: Path) -> dict[str, tuple[object, ...]]:
    small, target = folder / "small", target_config_file(folder / "target.json", "llama", layers=3)
    return {
        "reshard": ("reshard", small, "--format", "zero", "--zero-stage", "2", "--world-size", "1"),
        "to files": ("reshard", small, "--format", "huggingface"),
        "export": ("export", small),
        "expand": ("expand", "--source", small, "--target", target),
    }


@pytest.mark.parametrize("command", ["reshard", "to files", "export", "expand"])
def test_digits_that_float32_does_not_hold_are_named(tmp_path, capsys, command):
    doubled(tmp_path / "small", **{DIGITS: 1 + 2.0**-40})
    code, out, err = lemon(capsys, *commands(tmp_path)[command], "--out", tmp_path / "out")
    assert code == 0 and out.count(f"1 {LOST}{DIGITS}") == 1, (out, err)
    assert f"1 {LOST}{DIGITS}" in manifest.read(tmp_path / "out").left_behind


@pytest.mark.parametrize("command", ["reshard", "export"])
def test_float64_that_holds_float32_loses_nothing(tmp_path, capsys, command):
    doubled(tmp_path / "small")
    code, out, err = lemon(capsys, *commands(tmp_path)[command], "--out", tmp_path / "out")
    assert code == 0 and LOST not in out + err, (out, err)
    assert lemon(capsys, "diff", tmp_path / "small", tmp_path / "out", "--weights-only")[0] == 0


def test_a_number_too_large_for_float32_is_refused(tmp_path, capsys):
    doubled(tmp_path / "small", **{DIGITS: 1e300})
    code, _, err = lemon(capsys, *commands(tmp_path)["reshard"], "--out", tmp_path / "out")
    assert code == 2 and f"'{DIGITS}' holds numbers up to 1e+300, too large for float32" in err, err
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_moments_and_weights_of_a_script_whose_model_is_double(tmp_path, capsys):
    """DeepSpeed at stage 0 trains such a model as it is."""
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2).double()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3, dtype=torch.float64)).square().sum().backward()
    optimizer.step()
    content = {"module": model.state_dict(), "buffer_names": [], "optimizer": optimizer.state_dict()}
    content |= {"global_steps": 1, "dp_world_size": 1, "mp_world_size": 1}
    (tmp_path / "small").mkdir()
    torch.save(content, tmp_path / "small" / "mp_rank_00_model_states.pt")
    how = ("--format", "zero", "--zero-stage", "1", "--world-size", "1")
    code, out, err = lemon(capsys, "reshard", tmp_path / "small", "--out", tmp_path / "out", *how)
    named = f"6 {LOST}weight, bias, exp_avg of weight, exp_avg of bias, exp_avg_sq of weight, …"
    assert code == 0 and named in out, (out, err)
    assert named in manifest.read(tmp_path / "out").left_behind
    assert torch.equal(checkpoints.raw(tmp_path / "out").tensors["weight"].tensor(), model.weight.detach().float())
