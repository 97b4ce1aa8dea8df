"""What lies beside the model in a checkpoint goes with its optimizer state, and is named; nothing else goes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.serialization.writer_pool import write_files
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import in_memory
from tests.helpers.checkpoints import beside_the_model, change, saved, target_config_file
from tests.helpers.cli import lemon

BESIDE = ["bert.pooler.dense.bias", "bert.pooler.dense.weight", "cls.seq_relationship.weight"]
LAYOUTS = [CheckpointLayout("zero", 1, 2), CheckpointLayout("zero", 3, 2), CheckpointLayout("universal")]


@pytest.fixture(params=LAYOUTS, ids=lambda layout: f"{layout.name}-{layout.zero_stage}")
def small(tmp_path, request) -> tuple[Path, State]:
    return beside_the_model(tmp_path / "small", request.param)


def test_the_models_own_state_is_whole(small):
    folder, trained = small
    state, config = checkpoints.read(folder)
    modules = {row.name: row.module_name for row in models.architecture_of(config).rows()}
    assert sorted(state.left_behind) == BESIDE and not set(BESIDE) & set(modules.values())
    assert set(state.steps) == {name for group in state.groups for name in group.names} == set(modules)
    assert [group.hyper["weight_decay"] for group in state.groups] == [0.1, 0.0]
    for name, module in modules.items():
        assert torch.equal(state.tensors[name].tensor(), trained.tensors[module].tensor()), name
        for slot, tensors in state.slots.items():
            assert set(tensors) == set(modules)
            assert torch.equal(tensors[name].tensor(), trained.slots[slot][module].tensor()), (slot, name)


def test_every_command_says_what_it_leaves_behind(small, tmp_path, capsys):
    folder, _ = small
    target = target_config_file(tmp_path / "target.json", "bert", hidden=24, heads=6, mlp=48)
    growth = ["--source", folder, "--target", target, "--optimizer-state", "grow"]
    for command in (
        ["plan", *growth],
        ["expand", *growth, "--out", tmp_path / "large"],
        ["reshard", folder, "--format", "huggingface", "--out", tmp_path / "hf"],
        ["export", folder, "--out", tmp_path / "model"],
    ):
        code, out, err = lemon(capsys, *command)
        assert code == 0, err
        said = [line for line in out.splitlines() if "3 tensors of the source are no part of its model" in line]
        assert len(said) == 1 and all(name in said[0] for name in BESIDE), out
    code, out, err = lemon(capsys, "plan", *growth, "--json")
    assert code == 0 and sorted(json.loads(out)["left_behind"]) == BESIDE
    assert set(checkpoints.read(tmp_path / "large")[0].slots) == {"exp_avg", "exp_avg_sq"}
    code, out, _ = lemon(capsys, "diff", folder, tmp_path / "hf", "--weights-only")
    assert code == 0 and "not compared 3 tensors of A that are no part of its model" in out and "bit-equal" in out


def test_buffers_and_the_optimizers_state_are_named(tmp_path, capsys):
    folder, trained = beside_the_model(tmp_path / "small", LAYOUTS[0])
    held = replace(trained, buffers=in_memory([("seen", torch.ones(1))]))
    write_files(checkpoints.files(held, folder, LAYOUTS[0]), folder)
    lines = {
        "buffers are left behind: seen",
        "the optimizer state is left behind: exp_avg, exp_avg_sq, step 3, hyper-parameters",
    }
    for name, command in {
        "reshard": ["reshard", folder, "--format", "huggingface"],
        "export": ["export", folder],
    }.items():
        code, said, err = lemon(capsys, *command, "--out", tmp_path / name)
        assert code == 0, err
        assert lines <= set(json.loads((tmp_path / name / "manifest.json").read_text())["left_behind"])
        assert all(f"{name}: {line}" in said for line in lines)


@pytest.mark.parametrize("state", ["grow", "reset"])
def test_an_expansion_names_the_buffers(tmp_path, capsys, state):
    folder, trained = beside_the_model(tmp_path / "small", LAYOUTS[0])
    held = replace(trained, buffers=in_memory([("seen", torch.ones(1)), ("steps.of", torch.ones(1))]))
    write_files(checkpoints.files(held, folder, LAYOUTS[0]), folder)
    target = target_config_file(tmp_path / "target.json", "bert", hidden=24, heads=6, mlp=48)
    growth = ["--source", folder, "--target", target, "--optimizer-state", state]
    code, said, err = lemon(capsys, "expand", *growth, "--out", tmp_path / "large")
    assert code == 0, err
    line = "buffers are left behind: seen, steps.of"
    assert f"expand: {line}" in said
    assert line in json.loads((tmp_path / "large" / "manifest.json").read_text())["left_behind"]


def test_a_tied_copy_is_not_called_left_behind(tmp_path):
    def tie(tensors: dict) -> None:
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["bert.embeddings.position_ids"] = torch.arange(14)[None]

    state, _ = checkpoints.read(change(saved(tmp_path / "small", "bert"), tie))
    assert state.left_behind == ("bert.embeddings.position_ids",)


def test_all_of_a_state_is_the_state(tmp_path):
    _, trained = beside_the_model(tmp_path / "small", LAYOUTS[0])
    assert trained.only(trained.tensors) == trained
    kept = trained.only(BESIDE[:1])
    assert list(kept.tensors) == list(kept.steps) == BESIDE[:1] and [g.names for g in kept.groups] == [(BESIDE[0],)]
    assert all(list(tensors) == BESIDE[:1] for tensors in kept.slots.values())
