"""What commands say by themselves, under -q and under -v; what a reader must know is never silent."""

import json
import re

import pytest
import torch

from pipeline.checkpoints import CheckpointLayout
from tests.helpers.checkpoints import change, foreign, saved, source, target_config_file
from tests.helpers.cli import lemon

LAYOUT, SIZES = CheckpointLayout("zero", 1, 2), {"layers": 3, "hidden": 20, "heads": 5, "mlp": 33}


@pytest.fixture
def expand(tmp_path):
    """Arguments of an expansion of a native checkpoint."""
    target = target_config_file(tmp_path / "target.json", "bert-pre-ln", eps=1e-12, **SIZES)
    return ("expand", "--source", source(tmp_path, LAYOUT), "--target", target, "--out", tmp_path / "large")


DETAILS = (
    r"/small: native ZeRO, \d+ tensors, step 7, optimizer state: exp_avg, exp_avg_sq",
    r"expand: .*/small -> .*/large, native ZeRO stage 1, 2 ranks",
    r"read .*/small/mp_rank_00_model_states.pt",
    r"wrote zero_pp_rank_1_mp_rank_00_optim_states.pt, [\d,]+ bytes",
    r"[\d,.]+ MiB written and hashed in \d+\.\d s by \d+ processes",
    r"expand: both models ran on 2 samples in \d+\.\d s",
    r"expand: residual stream after layer .*1: relative difference \d\.\de-\d\d",
    r"expand: gradients of copies in 'mlp' differ by \d\.\de[+-]\d\d",
    r"/large: published, \d+ files",
)


def test_details_are_told_under_v_alone(expand, tmp_path, capsys):
    code, said, _ = lemon(capsys, *expand, "-v")
    assert code == 0
    for detail in DETAILS:
        assert re.search(detail, said), detail
    again = [*expand[:-1], tmp_path / "again"]
    code, said, _ = lemon(capsys, *again)
    assert code == 0 and [line[:17] for line in said.splitlines()] == [
        "expand: 54 tensor",
        "expand: verified,",
        "expand: wrote " + str(tmp_path)[:3],
    ]


def test_quiet_says_nothing_of_what_went_as_asked(expand, capsys):
    assert lemon(capsys, *expand, "-q") == (0, "", "")


def test_what_a_program_reads_is_nothing_else(expand, capsys):
    code, said, details = lemon(capsys, "plan", *expand[1:-2], "--json", "-v")
    assert code == 0 and json.loads(said)["family"] == "bert-pre-ln" and "optimizer state: exp_avg" in details


def test_what_is_left_behind_is_told_under_q_too(tmp_path, capsys):
    small = source(tmp_path, LAYOUT)
    code, said, _ = lemon(capsys, "reshard", small, "--out", tmp_path / "hf", "--format", "huggingface", "-q")
    assert code == 0
    assert said == "reshard: the optimizer state is left behind: exp_avg, exp_avg_sq, step 7, hyper-parameters\n"
    held = foreign(tmp_path / "foreign")
    code, said, _ = lemon(capsys, "reshard", held, "--out", tmp_path / "universal", "--format", "universal", "-q")
    assert code == 0 and "restores no frozen parameters (1) and no buffers (1)" in said


def test_a_lossy_growth_is_told_under_q_too(expand, capsys):
    code, said, _ = lemon(capsys, *expand, "--method", "random", "-q")
    assert code == 0 and said.startswith("expand: lossy, as declared (") and said.count("\n") == 1


def test_another_heads_weights_are_left_out_aloud(tmp_path, capsys):
    """What is no part of the model is named, buffers too."""
    folder = saved(tmp_path / "small", "bert")
    head = {"cls.seq_relationship.weight": torch.ones(2, 12), "bert.embeddings.position_ids": torch.arange(9)[None]}
    change(folder, lambda tensors: tensors.update(head))
    target = target_config_file(tmp_path / "target.json", "bert", hidden=24, heads=6, mlp=48)
    code, said, _ = lemon(capsys, "expand", "--source", folder, "--target", target, "--out", tmp_path / "large", "-q")
    assert code == 0
    assert said == (
        "expand: 2 tensors of the source are no part of its model and left behind: "
        "bert.embeddings.position_ids, cls.seq_relationship.weight\n"
    )
