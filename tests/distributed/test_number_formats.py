"""In what a stage sums gradients and multiplies: printed, recorded, kept by a stage that goes on, changed where that is
allowed."""

import json
import re
from pathlib import Path

import pytest

from pipeline.checkpoints.describe import layout_facts
from pipeline.training import device_precisions
from tests.helpers.cli import lemon, lemon_here
from tests.helpers.runs import copied, interrupted, losses, records

BF16 = ["stages.small.precision=bf16", "stages.small.zero_stage=1"]
FP32_SUMS = "trained in bf16 with gradients summed in fp32"
OLD = ("gradient_sums", "matmul_precision")


def trained(finished: Path, folder: Path, *overrides: str) -> Path:
    """The folder, in which the stage `small` was trained anew in bf16 at ZeRO-1. Skips where the device has no bf16."""
    if "bf16" not in device_precisions.supported_precisions():
        pytest.skip("DeepSpeed does not support bf16 on this device")
    folder.mkdir()
    lemon_here("train", copied(finished, folder), "--stage", "small", *BF16, *overrides)
    return folder


def newest(folder: Path) -> Path:
    return max((folder / "run" / "small" / "checkpoints").iterdir())


def stage_facts(folder: Path) -> dict:
    return json.loads((folder / "run" / "small" / "stage.json").read_text())


def sums(folder: Path) -> list[tuple[int, str]]:
    """(step, gradient_sums) of each start."""
    return [(each["step"], each["settings"]["gradient_sums"]) for each in stage_facts(folder)["starts"]]


def test_a_stage_in_bf16_goes_on_as_if_nothing_had_been(finished, tmp_path, capfd):
    """Its checkpoints are those of BF16_Optimizer, and what it says of number formats is true."""
    plain = trained(finished, tmp_path / "plain")
    said = capfd.readouterr().out
    assert "ZeRO-1, bf16, gradients summed in fp32, matmul_precision highest" in said
    assert "_load_legacy_checkpoint" not in said
    assert layout_facts(newest(plain))["fp32_sums"]
    path = interrupted(plain, tmp_path / "again", "small", 20)
    code, said, _ = lemon(capfd, "train", path, "--stage", "small", *BF16)
    assert code == 0 and "_load_legacy_checkpoint" not in said and "resharded" not in said
    assert losses(tmp_path / "again" / "run", "small") == losses(plain / "run", "small")
    assert lemon(capfd, "diff", newest(plain), newest(tmp_path / "again"))[0] == 0
    assert sums(tmp_path / "again") == [(0, "fp32"), (20, "fp32")]
    assert all(record["grad_norm"] > 0 for record in records(plain / "run", "small") if "loss" in record)


@pytest.mark.slow
def test_other_sums_only_where_they_are_allowed(finished, tmp_path, capfd):
    """The checkpoint is written anew for the engine that sums otherwise, which is told."""
    plain = trained(finished, tmp_path / "plain")
    path = interrupted(plain, tmp_path / "other", "small", 20)
    command = ["train", path, "--stage", "small", *BF16, "stages.small.gradient_sums=bf16"]
    code, _, error = lemon(capfd, *command)
    assert code == 2 and error.count("\n") == 1
    assert (
        "stage.gradient_sums was fp32, is now bf16; go on with it all the same (--allow gradient_sums), take" in error
    )
    code, said, error = lemon(capfd, *command, "--allow", "gradient_sums")
    assert code == 0, error
    assert re.search(
        f"goes on as native ZeRO stage 1, 2 ranks, trained in bf16; .* written as .*{FP32_SUMS}, was", said
    )
    assert sums(tmp_path / "other") == [(0, "fp32"), (20, "bf16")]
    assert not layout_facts(newest(tmp_path / "other"))["fp32_sums"]
    ours, theirs = (losses(folder / "run", "small") for folder in (tmp_path / "other", plain))
    assert [each[0] for each in ours] == [each[0] for each in theirs] and ours != theirs
    assert [each[1] for each in ours if each[1]] == pytest.approx([each[1] for each in theirs if each[1]], abs=3e-2)


@pytest.mark.slow
def test_a_stage_of_an_older_version_goes_on_as_it_began(finished, tmp_path, capfd):
    """Its records say nothing of number formats: gradients were summed in bf16."""
    plain = trained(finished, tmp_path / "plain", "stages.small.gradient_sums=bf16")
    path = interrupted(plain, tmp_path / "old", "small", 20)
    facts = stage_facts(tmp_path / "old")
    for each in (facts, *facts["starts"]):
        each["settings"] = {key: value for key, value in each["settings"].items() if key not in OLD}
    facts["fingerprint"]["stage"] = {k: v for k, v in facts["fingerprint"]["stage"].items() if k not in OLD}
    (tmp_path / "old" / "run" / "small" / "stage.json").write_text(json.dumps(facts))
    code, said, error = lemon(capfd, "train", path, "--stage", "small", *BF16)
    assert code == 0 and "bf16, gradients summed in bf16, matmul_precision highest" in said, error
    assert losses(tmp_path / "old" / "run", "small") == losses(plain / "run", "small")
    assert sums(tmp_path / "old") == [(0, "bf16"), (20, "bf16")]
