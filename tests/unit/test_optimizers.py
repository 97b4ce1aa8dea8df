"""The optimizer specifications: what they build, what they recognise, and that each is torch's own."""

import pytest
import torch
from pydantic import BaseModel, ValidationError

from pipeline.checkpoints.layouts import LAYOUTS, NATIVE, CheckpointLayout
from pipeline.checkpoints.state import Group, State
from pipeline.checkpoints.tensors import in_memory
from pipeline.errors import UserError
from pipeline.optim import optimizers
from pipeline.optim.optimizers import OPTIMIZERS, SGD, AdamW, Optimizer
from pipeline.optim.parameter_groups import GroupRule

SPECS = [AdamW(), AdamW(betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1), SGD(), SGD(nesterov=True), SGD(momentum=0.0)]


def stepped(spec) -> torch.optim.Optimizer:
    """After one step on two groups, decayed and not."""
    matrix, vector = (torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 3), (4,)))
    groups = [{"params": [matrix], **spec.hyper(GroupRule(True))}, {"params": [vector], **spec.hyper(GroupRule(False))}]
    built = spec.build(groups, lr=0.1)
    matrix.grad, vector.grad = torch.ones(2, 3), torch.ones(4)
    built.step()
    return built


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_the_state_that_torch_keeps_is_the_specifications(spec):
    kept = {
        key for state in stepped(spec).state.values() for key, value in state.items() if isinstance(value, torch.Tensor)
    }
    assert kept == {slot.name for slot in spec.slots} | ({"step"} if spec.keeps_step else set())


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_slot_transforms_as_its_power_of_the_gradient(spec):
    """On the first step from zero state a slot is linear in the gradient's power: twice it gives 2^power the slot."""

    def slots(scale: float) -> dict[str, float]:
        parameter = torch.nn.Parameter(torch.zeros(1))
        built = spec.build([{"params": [parameter]}], lr=0.1)
        parameter.grad = torch.full((1,), scale)
        built.step()
        return {slot.name: built.state[parameter][slot.name].item() for slot in spec.slots}

    once, twice = slots(0.5), slots(1.0)
    assert all(twice[slot.name] == pytest.approx(2**slot.power * once[slot.name]) for slot in spec.slots)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_checkpoint_is_recognised(spec):
    built = stepped(spec)
    slots = {slot.name for slot in spec.slots}
    assert optimizers.recognise(slots, built.param_groups) == spec
    assert optimizers.recognise([], built.param_groups) == spec  # before its first step


def test_what_is_not_registered_is_refused_by_name():
    amsgrad = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], amsgrad=True).param_groups
    assert optimizers.recognise(["exp_avg", "exp_avg_sq", "max_exp_avg_sq"], amsgrad) is None
    with pytest.raises(UserError, match="optimizer state 'max_exp_avg_sq' belongs to no optimizer"):
        optimizers.require(["exp_avg", "exp_avg_sq", "max_exp_avg_sq"], amsgrad)
    with pytest.raises(UserError, match="optimizer state 'exp_avg' belongs to no optimizer"):
        optimizers.require(["exp_avg"], [{"lr": 0.1, "betas": (0.9, 0.99)}])  # Lion keeps one
    adagrad = torch.optim.Adagrad([torch.nn.Parameter(torch.zeros(1))]).param_groups
    with pytest.raises(UserError, match=r"optimizer groups with .*lr_decay.* belong to no optimizer"):
        optimizers.require([], adagrad)


@pytest.mark.parametrize("other", [torch.optim.Adamax, torch.optim.NAdam, torch.optim.RAdam], ids=lambda o: o.__name__)
def test_betas_alone_do_not_make_an_adam(other):
    """Before the first step the groups alone tell."""
    assert optimizers.recognise([], other([torch.nn.Parameter(torch.zeros(1))]).param_groups) is None


def test_an_optimizer_with_keys_of_its_own_is_none_of_ours():
    """RMSprop and Muon have a momentum, LAMB and AdaBelief betas and an eps: their state before the first step is not
    invented as SGD's or AdamW's."""
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    adam = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False}
    others = torch.optim.RMSprop([parameter]).param_groups, torch.optim.Muon([parameter]).param_groups
    for groups in (*others, [{**adam, "max_coeff": 10.0}], [{**adam, "rectify": True}]):
        assert optimizers.recognise([], groups) is None
    assert optimizers.recognise([], [{**adam, "name": "decayed", "max_lr": 0.2}]).kind == "adamw"


def test_what_keeps_a_third_moment_or_one_is_no_adam_before_its_first_step():
    amsgrad = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], amsgrad=True).param_groups
    lion = [{"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0}]
    assert optimizers.recognise([], amsgrad) is None and optimizers.recognise([], lion) is None


@pytest.mark.parametrize(
    "layout", [layout for layout in LAYOUTS.values() if layout.holds_optimizer], ids=lambda x: x.name
)
def test_writers_refuse_by_name_what_has_not_the_shape_of_the_weights(tmp_path, layout):
    """Rows and columns of a factored second moment, or a parameter that has none: nothing is invented."""
    weights, group = in_memory([("a", torch.ones(2)), ("b", torch.ones(3))]), Group(("a", "b"), {"lr": 0.1})
    for held in (in_memory([("a", torch.ones(2)), ("b", torch.ones(1))]), in_memory([("a", torch.ones(2))])):
        state = State(weights, slots={"rows": held}, groups=(group,))
        with pytest.raises(UserError, match=r"optimizer state 'rows' of 'b' is .*\(--format huggingface\)"):
            layout.files(state, tmp_path, CheckpointLayout(layout.name))


def test_one_flat_counts_one_step(tmp_path):
    state = State(
        in_memory([("a", torch.ones(2)), ("b", torch.ones(3))]),
        groups=(Group(("a", "b"), {"lr": 0.1, "betas": (0.9, 0.99)}),),
        steps={"a": 3.0},
    )
    with pytest.raises(UserError, match=r"different steps \('a' at 3, 'b' at 0\)"):
        NATIVE.files(state, tmp_path, CheckpointLayout())


class Config(BaseModel):
    optimizer: Optimizer = AdamW()


@pytest.mark.parametrize(
    "content, spec",
    [
        ({}, AdamW()),
        (
            {"betas": [0.9, 0.98], "eps": 1e-6, "weight_decay": 0.1, "clip": 0.5},
            AdamW(betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, clip=0.5),
        ),
        ({"kind": "sgd", "momentum": 0.5}, SGD(momentum=0.5)),
    ],
)
def test_a_config_names_one_by_kind_and_means_adamw_without(content, spec):
    assert Config(optimizer=content).optimizer == spec


@pytest.mark.parametrize(
    "content, place",
    [
        ({"kind": "lion"}, "Input tag 'lion'"),
        ({"kind": "sgd", "betas": [0.9, 0.98]}, "betas"),
        ({"kind": "sgd", "momentum": 0, "nesterov": True}, "needs a momentum above 0"),
        ({"betas": [0.9, 1.0]}, "less than 1"),
    ],
)
def test_a_config_that_means_none(content, place):
    with pytest.raises(ValidationError, match=place):
        Config(optimizer=content)


def test_every_registered_kind_can_be_named_in_a_config():
    assert [type(Config(optimizer={"kind": kind}).optimizer) for kind in OPTIMIZERS] == list(OPTIMIZERS.values())
