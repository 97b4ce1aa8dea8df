"""Optimizer state that grows: through a whole run in the real engine, and offline in every layout."""

import json

import pytest
import torch
import yaml

from pipeline import checkpoints, models
from pipeline.checkpoints import CheckpointLayout, diff, manifest
from pipeline.checkpoints.serialization import byte_stream
from pipeline.expansion import expand, planning
from pipeline.growth import initialization, methods
from pipeline.optim.optimizers import Muon
from tests.helpers.checkpoints import by_muon, source
from tests.helpers.cli import lemon_here
from tests.helpers.rotation import rotated
from tests.helpers.runs import copied, records
from tests.helpers.samples import sample

LARGE = {"layers": 3, "hidden": 20, "heads": 5, "mlp": 33}


@pytest.mark.parametrize(
    "layout",
    [
        CheckpointLayout("zero", 1, 3),
        CheckpointLayout("zero", 2, 2),
        CheckpointLayout("zero", 3, 2),
        CheckpointLayout("universal"),
    ],
    ids=lambda f: f"{f.name}-{f.zero_stage}",
)
def test_every_layout_keeps_the_grown_moments(tmp_path, layout):
    job = planning.plan_expansion(
        source(tmp_path, layout), sample("bert-pre-ln", **LARGE), methods.parse(), layout, moments="grow"
    )
    expand.execute_expansion(job, tmp_path / "large")
    state, _ = checkpoints.read(tmp_path / "large")
    expected = expand.grown(job)
    assert set(state.steps.values()) == {7.0}
    assert [group.hyper["weight_decay"] for group in state.groups] == [0.1, 0.0]
    for slot in ("exp_avg", "exp_avg_sq"):
        for name, entry in state.slots[slot].items():
            assert torch.equal(entry.tensor(), expected.slots[slot][name].tensor()), (slot, name)
    assert all((entry.tensor() > 0).all() for entry in state.slots["exp_avg_sq"].values())


@pytest.mark.parametrize(
    "layout",
    [*(CheckpointLayout("zero", stage, 3) for stage in range(4)), CheckpointLayout("universal")],
    ids=lambda f: f"{f.name}-{f.zero_stage}",
)
def test_muons_momentum_grows_as_a_first_moment_does(tmp_path, layout):
    """The same numbers, once as AdamW's and once as Muon's, grow to the same; in the files they lie otherwise."""
    adamw, target = source(tmp_path, CheckpointLayout("zero", 2, 2)), sample("bert-pre-ln", **LARGE)
    places = {"adamw": adamw, "muon": by_muon(adamw, tmp_path / "by-muon", layout)}
    grown = {}
    for optimizer, place in places.items():
        job = planning.plan_expansion(place, target, methods.parse(), layout, moments="grow")
        expand.execute_expansion(job, tmp_path / optimizer)
        grown[optimizer], _ = checkpoints.read(tmp_path / optimizer)
    kinds = {row.name: row.kind for row in models.architecture_of(target).rows()}
    muon, others = grown["muon"], {name for name, kind in kinds.items() if kind != "hidden"}
    assert muon.optimizer() == Muon(weight_decay=0.1) and muon.step == 7
    assert muon.steps == dict.fromkeys(others, 7.0)
    assert {slot: set(held) for slot, held in muon.slots.items()} == {
        "momentum_buffer": set(kinds) - others,
        "exp_avg": others,
        "exp_avg_sq": others,
    }
    (matrices,) = (group.names for group in muon.groups if group.hyper["use_muon"])
    shapes = [muon.tensors[name].shape for name in matrices]
    assert shapes == sorted(shapes, reverse=True), "DeepSpeed's order"
    for slot, held in muon.slots.items():
        for name, entry in held.items():
            twin = grown["adamw"].slots["exp_avg" if slot == "momentum_buffer" else slot][name]
            assert torch.equal(entry.tensor(), twin.tensor()), (slot, name)


def test_neither_workers_nor_ranks_change_what_is_grown(tmp_path, monkeypatch):
    """Small windows and blocks, so that every tensor is made in many pieces, cut otherwise for each number of ranks."""
    monkeypatch.setattr(byte_stream, "WINDOW", 50)
    monkeypatch.setattr(initialization, "BLOCK", 64)
    small, target = source(tmp_path, CheckpointLayout("zero", 3, 2)), sample("bert-pre-ln", **LARGE, vocab=70)
    made = []
    for number, (ranks, workers) in enumerate([(3, 1), (3, 2), (3, 5), (1, 2), (4, 2)]):
        job = planning.plan_expansion(
            small,
            target,
            methods.parse("lemon", {"depth": "cancel"}),
            CheckpointLayout("zero", 3, ranks),
            moments="grow",
        )
        expand.execute_expansion(job, tmp_path / str(number), workers)
        made.append(tmp_path / str(number))
    files = [manifest.read(folder).files for folder in made[:3]]
    assert files[0] == files[1] == files[2]
    assert all(diff.compare(made[0], other).equal for other in made[3:])


def test_a_result_without_room_for_moments_is_refused(tmp_path):
    with pytest.raises(
        checkpoints.UserError, match="Hugging Face files hold no optimizer state; use --format universal or zero"
    ):
        planning.plan_expansion(
            source(tmp_path, CheckpointLayout("zero", 1, 2)),
            sample("bert-pre-ln", **LARGE),
            methods.parse(),
            CheckpointLayout("huggingface"),
            moments="grow",
        )


@rotated(one_in=2, of="state")
@pytest.mark.parametrize("state, steps", [("grow", 24 + 6), ("reset", 6)])
def test_the_engine_goes_on_with_them(finished, tmp_path, state, steps):
    """The large stage starts at the small one's last loss; its AdamW counts on from the small one's steps or from 0."""
    path = copied(finished, tmp_path, "small")
    content = yaml.safe_load(path.read_text())
    content["stages"][1]["optimizer_state"] = state
    content["stages"][2]["schedule"]["fraction"] = 0.25
    content["stages"] = content["stages"][:3]
    path.write_text(yaml.safe_dump(content))
    lemon_here("run", path)
    run = tmp_path / "run"
    last, first = ([r["eval_loss"] for r in records(run, stage) if "eval_loss" in r] for stage in ("small", "large"))
    assert first[0] == pytest.approx(last[-1], abs=1e-6) and first[-1] < first[0]
    held, _ = checkpoints.read(checkpoints.locate(run / "large"))
    assert set(held.steps.values()) == {float(steps)}
    assert json.loads((run / "grown" / "stage.json").read_text())["optimizer_state"] == state
    grown, _ = checkpoints.read(checkpoints.locate(run / "grown"))
    assert all((entry.tensor() > 0).any() for entry in grown.slots["exp_avg_sq"].values()) == (state == "grow")


@pytest.mark.slow
def test_universal_goes_into_stage_3_as_native_does(finished, tmp_path):
    """The engine repairs what DeepSpeed's loader of universal checkpoints leaves wrong: shared steps, hyper-parameters.

    The same expansion in both layouts, trained on: losses equal to float32's own rounding. Part of .ci/run.
    """
    path, layouts = copied(finished, tmp_path), {"zero": ["--zero-stage", 3], "universal": []}
    content = yaml.safe_load(path.read_text())
    content["models"]["large"]["dropout"] = 0.0  # its draws depend on the stage's name
    path.write_text(yaml.safe_dump(content))
    for layout, options in layouts.items():
        places = ("--source", finished / "run" / "small", "--target", f"{path}:large", "--out", tmp_path / layout)
        lemon_here("expand", *places, "--format", layout, *options, "--optimizer-state", "grow")
    large = {**content["stages"][2], "zero_stage": 3}
    content["stages"] = [{**large, "name": layout, "start": str(tmp_path / layout)} for layout in layouts]
    path.write_text(yaml.safe_dump(content))
    lemon_here("run", path)
    native, universal = (
        [record["loss"] for record in records(tmp_path / "run", layout) if "loss" in record] for layout in layouts
    )
    assert universal == pytest.approx(native, abs=1e-6) and len(native) == 12
    for layout in layouts:
        held, _ = checkpoints.read(checkpoints.locate(tmp_path / "run" / layout))
        assert set(held.steps.values()) == {36.0}
