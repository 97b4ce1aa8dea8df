"""What lies beside the model in DeepSpeed's files goes along as it is; what cannot is named, and never executed."""

import argparse
import collections
import json
import pathlib
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from torch.nn import Parameter

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.layouts import carried
from tests.helpers.checkpoints import foreign, source, state, target_config_file
from tests.helpers.cli import lemon

STAGES = {1: CheckpointLayout("zero", 1, 2), 3: CheckpointLayout("zero", 3, 2)}
TARGETS = {
    "2 on 3": ["--zero-stage", "2", "--world-size", "3"],
    "3 on 3": ["--zero-stage", "3", "--world-size", "3"],
    "universal": ["--format", "universal"],
}
CLIENT = {
    "epoch": 3,
    "note": "as it is",
    "rng": torch.arange(5, dtype=torch.uint8),
    "nested": {"best": [1, 2.5, (torch.tensor(True), None)], 7: {"a", "b"}},
    "lr_scheduler": {"last_epoch": 2, "base_lrs": [0.1], "lr_lambdas": [None]},
    "skipped_steps": 2,
    "global_samples": 48,
    "ds_config": {"train_batch_size": 12},
    "ds_version": "0.18.0",
    "data_sampler": {"consumed": 5},
    "random_ltd": {"current": 1},
}
OPAQUE = {
    "args": (argparse.Namespace(lr=1e-3), "argparse.Namespace"),
    "out": (pathlib.Path("somewhere"), "pathlib"),
    "best": (np.float64(0.5), "numpy"),
    "np_rng": (np.random.get_state(), "numpy"),
    "kind": (argparse.Namespace, "argparse.Namespace"),
}


class Bunch(dict):
    """A dict with attributes, as many packages have one."""


def with_client(folder: Path, stage: int, **client: object) -> Path:
    foreign(folder, state(), STAGES[stage])
    for path in folder.glob("*model_states.pt"):
        torch.save({**torch.load(path, weights_only=False), **client}, path)
    return folder


def resharded(capsys, folder: Path, target: str) -> tuple[Path, str]:
    out = folder.with_name("out")
    code, said, err = lemon(capsys, "reshard", folder, "--out", out, *TARGETS[target])
    assert code == 0, err
    return out, said


def model_states(folder: Path) -> list[dict]:
    found = [torch.load(path, weights_only=False) for path in sorted(folder.glob("*model_states.pt"))]
    assert found
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stage", STAGES)
def test_plain_values_go_along(tmp_path, capsys, stage, target):
    out, said = resharded(capsys, with_client(tmp_path / "small", stage, **CLIENT), target)
    for held in model_states(out):
        assert carried.same({key: held[key] for key in CLIENT}, CLIENT)
        assert held["global_steps"] == 4
    assert "not opened" not in said
    for folder in (tmp_path / "small", out):
        listed = json.loads(lemon(capsys, "inspect", folder, "--json")[1])
        assert set(listed["keeps"]) == set(CLIENT) - {"skipped_steps", "global_samples", "ds_config", "ds_version"}
        assert (listed["counters"]["skipped_steps"], listed["counters"]["global_samples"]) == (2, 48)
        code, said, _ = lemon(capsys, "inspect", folder)
        assert "skipped_steps 2, global_samples 48" in said and "keeps " in said
    code, said, _ = lemon(capsys, "diff", tmp_path / "small", out)
    assert code == 0, said


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stage", STAGES)
def test_objects_are_named_and_left_behind(tmp_path, capsys, stage, target):
    objects = {name: value for name, (value, _) in OPAQUE.items()}
    client = {**CLIENT, **objects, "rngs": {"python": random.getstate(), "numpy": np.random.get_state()}}
    folder = with_client(tmp_path / "small", stage, **client)
    for command in ("inspect", "check"):
        code, _, err = lemon(capsys, command, folder)
        assert code == 0, err
    out, said = resharded(capsys, folder, target)
    left = json.loads((out / "manifest.json").read_text())["left_behind"]
    for name, kind in [*((name, kind) for name, (_, kind) in OPAQUE.items()), ("rngs.numpy", "numpy")]:
        (line,) = [line for line in left if line.startswith(f"'{name}' holds {kind}")]
        assert f"reshard: {line}" in said
    for held in model_states(out):
        assert carried.same({key: held[key] for key in CLIENT}, CLIENT) and not set(OPAQUE) & set(held)
        assert held["rngs"] == {"python": client["rngs"]["python"]}


HOLDERS = {
    "losses": (collections.deque([1.5], maxlen=3), "collections.deque"),
    "history": (collections.defaultdict(list, a=[1.5]), "collections.defaultdict"),
    "bunch": (Bunch(a=1), "tests.tools.test_client_state.Bunch"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_objects_that_hold_items_do_not_shut_a_checkpoint_out(tmp_path, capsys, stage):
    """torch refuses to fill them, whatever stands in for their classes."""
    objects = {name: value for name, (value, _) in HOLDERS.items()}
    folder = with_client(tmp_path / "small", stage, **CLIENT, **objects, keyed={pathlib.PurePosixPath("a"): 1, "b": 2})
    out, said = resharded(capsys, folder, "2 on 3")
    for name, (_, kind) in HOLDERS.items():
        assert f"reshard: '{name}' holds {kind}, which is not opened, and is left behind" in said
    assert "reshard: 'keyed.pathlib.PurePosixPath' is called by pathlib.PurePosixPath, which is not opened" in said
    for held in model_states(out):
        assert carried.same({key: held[key] for key in CLIENT}, CLIENT) and not set(HOLDERS) & set(held)
        assert held["keyed"] == {"b": 2}


def test_parameters_stay_parameters(tmp_path, capsys):
    given = {"mean": Parameter(torch.tensor([0.1, 0.2])), "fixed": Parameter(torch.ones(2), False)}
    asking = torch.tensor([3.0], requires_grad=True)
    out, _ = resharded(capsys, with_client(tmp_path / "small", 1, nested=given, asking=asking), "3 on 3")
    for held in model_states(out):
        assert carried.same(held["nested"], given) and held["asking"].requires_grad
        assert [value.requires_grad for value in held["nested"].values()] == [True, False]


def test_a_scripts_own_group_names_are_its_own(tmp_path, capsys):
    """Under that key this pipeline's engine keeps what the files say anyway."""
    own = with_client(tmp_path / "small", 1, group_names=[["mine"]])
    assert model_states(resharded(capsys, own, "3 on 3")[0])[0]["group_names"] == [["mine"]]
    ours = with_client(tmp_path / "ours", 1, group_names=[list(group.names) for group in state().groups])
    assert "group_names" not in checkpoints.raw(ours).engine


def test_what_has_no_place_is_named(tmp_path, capsys):
    """A grown model begins a training of its own, and Hugging Face files hold weights alone."""
    folder = source(tmp_path, STAGES[1])
    (folder / "manifest.json").unlink()
    path = folder / "mp_rank_00_model_states.pt"
    torch.save({**torch.load(path, weights_only=False), "epoch": 3, "lr_scheduler": {"last_epoch": 2}}, path)
    target = target_config_file(tmp_path / "target.json", "bert-pre-ln", layers=3, hidden=20, heads=5, mlp=33)
    commands = {
        "expand": ["expand", "--source", folder, "--target", target],
        "export": ["export", folder],
        "reshard": ["reshard", folder, "--format", "huggingface"],
    }
    for name, command in commands.items():
        code, said, err = lemon(capsys, *command, "--out", tmp_path / name)
        assert code == 0, err
        assert f"{name}: what the training script keeps is left behind: " in said
        (line,) = [
            line
            for line in json.loads((tmp_path / name / "manifest.json").read_text())["left_behind"]
            if line.startswith("what the training script keeps")
        ]
        assert set(line.partition(": ")[2].split(", ")) == {"epoch", "lr_scheduler"}


def test_a_ranks_own_client_state_is_named(tmp_path, capsys):
    """Stage 3 keeps one for each rank; generators of random numbers differ."""
    folder = with_client(tmp_path / "small", 3, rng=torch.zeros(3), epoch=1)
    path = folder / "zero_pp_rank_1_mp_rank_00_model_states.pt"
    torch.save({**torch.load(path, weights_only=False), "rng": torch.ones(3)}, path)
    out, said = resharded(capsys, folder, "2 on 3")
    assert "rank 1's own 'rng' is left behind: rank 0's goes to every rank" in said
    assert torch.equal(model_states(out)[0]["rng"], torch.zeros(3))


def scaler() -> DynamicLossScaler:
    """In the middle of an fp16 run."""
    made = DynamicLossScaler(
        init_scale=2.0**13, scale_window=500, min_scale=2, delayed_shift=3, consecutive_hysteresis=True
    )
    made.cur_iter, made.last_overflow_iter, made.cur_hysteresis = 7, 4, 2
    return made


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_scale_goes_along(tmp_path, capsys, stage, target):
    folder = foreign(tmp_path / "small", state(), STAGES[stage])
    kept = {"loss_scaler": scaler(), "dynamic_loss_scale": True, "overflow": False, "clip_grad": 0.5}
    for path in folder.glob("*optim_states.pt"):
        content = torch.load(path, weights_only=False)
        content["optimizer_state_dict"].update(kept)
        torch.save(content, path)
    out, _ = resharded(capsys, folder, target)
    paths = [out / "zero" / "optimizer_state.pt"] if target == "universal" else sorted(out.glob("*optim_states.pt"))
    for path in paths:
        content = torch.load(path, weights_only=False)
        held = content if target == "universal" else content["optimizer_state_dict"]
        assert type(held["loss_scaler"]) is DynamicLossScaler and vars(held["loss_scaler"]) == vars(scaler())
        assert {key: held[key] for key in kept if key != "loss_scaler"} == {
            "dynamic_loss_scale": True,
            "overflow": False,
            "clip_grad": 0.5,
        }
    assert lemon(capsys, "diff", folder, out)[0] == 0
    code, said, _ = lemon(capsys, "diff", foreign(tmp_path / "static", state(), STAGES[1]), out)
    assert code == 1 and "loss scale 8192" in said


def test_a_source_without_a_scale_invents_none(tmp_path):
    """An engine of stages 1 and 2 keeps its own then."""
    folder = foreign(tmp_path / "small", replace(state(), scaling={}), STAGES[1])
    content = torch.load(folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt", weights_only=False)
    assert "loss_scaler" not in content["optimizer_state_dict"] and checkpoints.raw(folder).scaling == {}
