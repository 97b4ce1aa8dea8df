"""Layers of one stack that differ in what they have and read, as ModernBERT's first one does: its attention reads the
residual stream itself, without a norm."""

import pytest
import torch

from pipeline import models
from pipeline.growth import methods
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.optimizer_state import GrownSlot
from pipeline.growth.plan import build_plan
from pipeline.optim.optimizers import Slot
from tests.helpers.growing import EXACT, difference, grown, planned, randomised, rows_of, times
from tests.helpers.samples import EVERY_OTHER, sample

NORM = "model.layers.{}.attn_norm."
COPYING = ["stack", "interpolate", "fpi", "aki", "net2net", "tile", "sparkling"]


def test_the_first_layer_reads_the_stream_and_the_others_a_norm():
    rows = {row.name: row for row in models.architecture_of(sample("modernbert")).rows()}
    read = [rows[f"model.layers.{layer}.attn.Wqkv.weight"].axes[1].spaces for layer in range(4)]
    assert read == [("embed",), ("normed",), ("normed",), ("normed",)]
    assert [NORM.format(layer) + "weight" in rows for layer in range(4)] == [False, True, True, True]


@pytest.mark.parametrize("sizes", [{"layers": 4}, times(2, layers=4)], ids=["deeper", "deeper, wider"])
def test_a_new_layer_from_the_first_begins_with_a_norm_that_only_normalises(sizes):
    """It adds nothing, so that any norm is exact."""
    source, target = sample("modernbert biases"), sample("modernbert biases", **sizes)
    weights = randomised(source)
    large, target, plan = grown(weights, source, target)
    assert [each.origin for each in plan.layers["layers"]] == [0, 1, 0, 1, 2, 3, 2, 3]
    assert (large[NORM.format(2) + "weight"] == 1).all() and not large[NORM.format(2) + "bias"].any()
    for layer, origin in ((1, 1), (3, 1), (4, 2), (6, 2)):
        for part in ("weight", "bias"):
            old = weights[NORM.format(origin) + part]
            assert torch.equal(large[NORM.format(layer) + part], old.repeat(len(large[NORM.format(2) + part]) // 12))
    assert difference(source, weights, target, large, plan) <= EXACT


@pytest.mark.parametrize("method", COPYING)
def test_copies_of_the_first_layer_get_such_a_norm_too(method):
    """Copies that compute something are lossy whatever their norm is."""
    width = {} if method in ("stack", "interpolate") else times(2)
    source, target = sample("modernbert"), sample("modernbert", **{**width, "layers": 6})
    large, _, plan = grown(randomised(source), source, target, method=method)
    assert plan.lossy
    for layer, origin in enumerate(plan.layers["layers"]):
        if layer:
            ones = bool((large[NORM.format(layer) + "weight"] == 1).all())
            assert ones == (origin.origin == 0), (layer, origin)


@pytest.mark.parametrize("options", [{}, {"width_init": "rand"}], ids=["lossless", "rand"])
def test_mixtures_of_layers_leave_out_those_that_have_no_such_tensor(options):
    source, target = sample("modernbert"), sample("modernbert", **times(2, layers=4))
    plan, _ = planned(source, target, "ligo", **options)
    tensors = {each.target: each for each in plan.tensors}
    assert {term.layer for term in tensors[NORM.format(5) + "weight"].terms} == {1, 2, 3}
    assert {term.layer for term in tensors["model.layers.5.attn.Wqkv.weight"].terms} == {0, 1, 2, 3}
    assert dict(PlanExecutor(plan).tensors(rows_of(randomised(source)))).keys() == tensors.keys()


def test_what_the_origin_lacks_stands_in_the_place_of_the_nearest():
    """By its name the optimizer's group and its history are found."""
    source, target = sample("modernbert"), sample("modernbert", layers=4)
    plan, _ = planned(source, target)
    (lacking,) = [each for each in plan.tensors if each.target == NORM.format(2) + "weight"]
    assert lacking.origin == NORM.format(1) + "weight" and not lacking.grown and lacking.note == "its origin has none"
    squares = {name: tensor.square() for name, tensor in randomised(source).items()}
    first, second = (
        GrownSlot(PlanExecutor(plan), lacking, Slot(name, power), rows_of(squares)).rows()
        for name, power in (("exp_avg", 1), ("exp_avg_sq", 2))
    )
    assert not first.any() and torch.equal(second, squares[NORM.format(1) + "weight"])


def test_both_halves_of_a_gated_matrix_grow_by_one_choice_of_units():
    source, target = sample("modernbert biases"), sample("modernbert biases", mlp=33)
    weights = randomised(source)
    large, target, plan = grown(weights, source, target)
    index = torch.arange(33) % 20
    for name in ("model.layers.1.mlp.Wi.weight", "model.layers.1.mlp.Wi.bias"):
        for half, grown_half in zip(weights[name].chunk(2), large[name].chunk(2), strict=True):
            assert torch.equal(grown_half, half[index])
    assert difference(source, weights, target, large, plan) <= EXACT


def test_the_norm_behind_the_embedding_is_why_other_widths_are_refused():
    """The same rules at a width that is no multiple give another function; a pre-LN model without that norm keeps its
    own."""
    for variant, exact in (("modernbert encoder", False), ("bert-pre-ln encoder", True)):
        source, target = sample(variant), sample(variant, hidden=20, heads=5, mlp=33)
        architectures = models.architecture_of(source), models.architecture_of(target)
        plan = build_plan(*architectures, methods.parse(), models.initializer_range(target))
        target.update(plan.config_change)
        weights = randomised(source)
        large = dict(PlanExecutor(plan).tensors(rows_of(weights)))
        found = difference(source, weights, target, large, plan)
        assert found <= EXACT if exact else found > 1e-3


def test_a_layer_of_each_kind_for_each_of_a_sample():
    assert models.architecture_of(sample("modernbert", layers=3)).stacks[0].layers == 3 * EVERY_OTHER
