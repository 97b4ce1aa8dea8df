"""State of optimizers that are not known here: read, shown, and carried where it has the shape of the weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline import checkpoints
from pipeline.checkpoints import CheckpointLayout
from pipeline.checkpoints.layouts import carried
from pipeline.checkpoints.state import Group, State
from tests.helpers.checkpoints import foreign, state
from tests.helpers.cli import lemon

OPTIMIZERS = {
    "lion": (("exp_avg",), False, {"betas": (0.9, 0.99)}),
    "adagrad": (("sum",), True, {"lr_decay": 0, "eps": 1e-10}),
    "amsgrad": (("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), True, {"betas": (0.9, 0.99), "amsgrad": True}),
    "muon": (("momentum_buffer",), False, {"use_muon": True, "momentum": 0.95, "ns_method": "gram"}),
    "sgd without momentum": ((), False, {"momentum": 0, "dampening": 0, "nesterov": False}),
}
TARGETS = {
    "1 on 3": ["--zero-stage", "1", "--world-size", "3"],
    "3 on 2": ["--zero-stage", "3", "--world-size", "2"],
    "universal": ["--format", "universal"],
}


def left_by(name: str) -> State:
    slots, steps, hyper = OPTIMIZERS[name]
    held = state()
    entries = held.slots["exp_avg"]
    return replace(
        held,
        slots=dict.fromkeys(slots, entries),
        steps=dict.fromkeys(entries, 4.0) if steps else {},
        groups=tuple(Group(group.names, {"lr": 0.1, "weight_decay": 0.0, **hyper}) for group in held.groups),
    )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_carried_and_none_is_invented(tmp_path, capsys, name, target):
    before, folder = left_by(name), foreign(tmp_path / "small", left_by(name), CheckpointLayout("zero", 2, 2))
    for command in ("inspect", "check"):
        code, _, err = lemon(capsys, command, folder)
        assert code == 0, err
    code, _, err = lemon(capsys, "reshard", folder, "--out", tmp_path / "out", *TARGETS[target])
    assert code == 0, err
    after = checkpoints.raw(tmp_path / "out")
    assert set(after.slots) == set(before.slots) and after.steps == before.steps and after.groups == before.groups
    for slot, tensors in before.slots.items():
        for parameter, tensor in tensors.items():
            assert torch.equal(after.slots[slot][parameter].tensor(), tensor.tensor()), (slot, parameter)
    code, out, _ = lemon(capsys, "diff", folder, tmp_path / "out")
    assert code == 0, out


def of_two_kinds(known: bool = True) -> State:
    """As Muon with AdamW leaves it: every group has slots of its own. known: as DeepSpeed's, which marks both."""
    held = left_by("muon")
    entries, (first, second) = held.slots["momentum_buffer"], held.groups
    slots = {"momentum_buffer": first.names, "exp_avg": second.names, "exp_avg_sq": second.names}
    adam = {**second.hyper, "use_muon": False, "betas": (0.9, 0.95), "eps": 1e-10}
    if not known:
        adam.pop("use_muon")
    return replace(
        held,
        groups=(first, replace(second, hyper=adam)),
        slots={slot: {name: entries[name] for name in names} for slot, names in slots.items()},
        steps=dict.fromkeys(second.names, 4.0),
    )


@pytest.mark.parametrize("target", TARGETS)
def test_groups_with_slots_of_their_own(tmp_path, capsys, target):
    before, folder = of_two_kinds(), foreign(tmp_path / "small", of_two_kinds(), CheckpointLayout("zero", 2, 2))
    for command in (["check", folder], ["reshard", folder, "--out", tmp_path / "out", *TARGETS[target]]):
        code, _, err = lemon(capsys, *command)
        assert code == 0, err
    after = checkpoints.raw(tmp_path / "out")
    assert {slot: set(held) for slot, held in after.slots.items()} == {s: set(h) for s, h in before.slots.items()}
    assert after.steps == before.steps
    for command in (["check", tmp_path / "out"], ["diff", folder, tmp_path / "out"]):
        code, out, err = lemon(capsys, *command)
        assert code == 0, out + err


def test_a_slot_that_one_parameter_of_a_group_lacks(tmp_path, capsys):
    folder = foreign(tmp_path / "small", of_two_kinds(known=False), CheckpointLayout("universal"))
    name = of_two_kinds().groups[1].names[-1]
    (folder / "zero" / name / "exp_avg.pt").unlink()
    code, _, err = lemon(capsys, "check", folder)
    assert code == 2 and f"exp_avg of '{name}' is missing" in err, err
    code, _, err = lemon(capsys, "reshard", folder, "--out", tmp_path / "out", "--format", "zero")
    assert code == 2 and f"optimizer state 'exp_avg' of '{name}' is missing" in err, err


BEFORE = {
    "adamax": {"betas": (0.9, 0.999), "eps": 1e-8, "maximize": False, "differentiable": False},
    "amsgrad": {"betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": True, "differentiable": False},
    "sgd": {"momentum": 0.9, "dampening": 0.5, "nesterov": False},
    "rprop": {"etas": (0.5, 1.2), "step_sizes": (1e-6, 50)},
}


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", BEFORE)
def test_before_the_first_step_no_state_is_invented(tmp_path, capsys, name, stage):
    """torch makes it then, and not of AdamW's two moments, nor a damped momentum of zeros."""
    groups = tuple(Group(g.names, {"lr": 0.1, "weight_decay": 0.0, **BEFORE[name]}) for g in state().groups)
    before = replace(state(), slots={}, steps={}, step=0, groups=groups)
    folder = foreign(tmp_path / "small", before, CheckpointLayout("zero", 1, 2))
    code, _, err = lemon(capsys, "reshard", folder, "--out", tmp_path / "out", "--zero-stage", stage)
    assert code == 0, err
    for path in (tmp_path / "out").glob("*optim_states.pt"):
        inner = torch.load(path, weights_only=False)["optimizer_state_dict"]
        base = inner["optimizer_state_dict" if stage == 3 else "base_optimizer_state"]
        assert base["state"] == {} and [group["lr"] for group in base["param_groups"]] == [0.1, 0.1]
    code, out, _ = lemon(capsys, "diff", folder, tmp_path / "out")
    assert code == 0, out


def nadam() -> State:
    held = left_by("amsgrad")
    products = {name: torch.tensor(0.75) for name in held.steps}
    slots = {slot: held.slots[slot] for slot in ("exp_avg", "exp_avg_sq")}
    return replace(held, slots=slots, scalars={"mu_product": products, "eta": dict.fromkeys(products, 0.5)})


@pytest.mark.parametrize("target", TARGETS)
def test_single_numbers_are_carried(tmp_path, capsys, target):
    folder = foreign(tmp_path / "small", nadam(), CheckpointLayout("zero", 2, 2))
    code, said, err = lemon(capsys, "reshard", folder, "--out", tmp_path / "out", *TARGETS[target])
    assert code == 0, err
    assert carried.same(checkpoints.raw(tmp_path / "out").scalars, nadam().scalars)
    assert ("restores no 'mu_product', 'eta'" in said) is (target == "universal")
    assert lemon(capsys, "diff", folder, tmp_path / "out")[0] == 0
    changed = replace(nadam(), scalars={"mu_product": {name: torch.tensor(0.5) for name in nadam().steps}})
    code, out, _ = lemon(capsys, "inspect", folder)
    assert code == 0 and "mu_product of 3, eta of 3 tensors, step 4" in " ".join(out.split())
    foreign(tmp_path / "changed", changed)
    code, out, _ = lemon(capsys, "diff", folder, tmp_path / "changed")
    assert code == 1 and "mu_product a tensor(0.7500) -> tensor(0.5000)" in " ".join(out.split())


def test_single_numbers_that_differ_inside_a_group_are_refused(tmp_path, capsys):
    held = replace(nadam(), scalars={"mu_product": {"a": 0.5, "b": 0.25, "c": 0.5}})
    folder = foreign(tmp_path / "small", held, CheckpointLayout("universal"))
    code, _, err = lemon(capsys, "reshard", folder, "--out", tmp_path / "out", "--zero-stage", 2)
    assert code == 2 and "optimizer state 'mu_product' is 0.25 of 'b' and 0.5 of 'c'" in err


def test_state_in_another_shape_is_named(tmp_path, capsys):
    folder = foreign(tmp_path / "small", left_by("lion"), CheckpointLayout("zero", 2, 1))
    path: Path = folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    content = torch.load(path, weights_only=False)
    content["optimizer_state_dict"]["base_optimizer_state"]["state"][0]["scale"] = torch.ones(2, 2)
    torch.save(content, path)
    code, out, _ = lemon(capsys, "reshard", folder, "--out", tmp_path / "out")
    assert code == 0 and "optimizer state 'scale' is not in the shape of the parameters and is left behind" in out
