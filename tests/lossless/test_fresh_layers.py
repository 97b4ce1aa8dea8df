"""Layers that start afresh, in models that had some and in those that had none."""

import pytest
import torch
from transformers import BertConfig, GPT2Config

from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.growth import plan_file
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.methods import METHODS
from pipeline.growth.verification.equivalence import verify
from tests.helpers.growing import grown, planned, randomised, rows_of, runnable, times
from tests.helpers.samples import VARIANTS, sample

PLACES = {"even": [0, None, None, 1, None], "top": [0, None, 1, None], "last": [0, 1, None, None, None]}
"""Which source layer each target layer goes on from; None: it is fresh."""
WITHOUT_LAYERS = [variant for variant in VARIANTS if not models.family(variant.split()[0]).least_layers]


@pytest.mark.parametrize("variant", WITHOUT_LAYERS)
def test_a_model_without_layers_computes_and_grows(variant):
    """It has a forward pass of its own, in its transformers class as module by module; all else is carried."""
    source, target = sample(variant, layers=0), sample(variant, layers=3)
    weights = randomised(source)
    large, target, plan = grown(weights, source, target, depth="random")
    layers = plan.target.stacks[0].layers
    assert layers >= 3 and plan.lossy == (f"{layers} of {layers} layers start afresh",)
    for row in plan.target.rows():
        if row.layer is None:
            assert torch.equal(large[row.name], weights[row.name]), row.name
    measured = verify(runnable(source, weights), runnable(target, large), plan)
    assert not measured.lossless and measured.drift == ()


@pytest.mark.parametrize("placement", PLACES)
@pytest.mark.parametrize("variant", ["bert", "bert-pre-ln", "vit", "dinov2", "qwen3 tied"])
def test_fresh_layers_are_a_new_models(variant, placement):
    """Each as a new model of that size would start it, drawn by the seed and by its name; the others stay."""
    places = PLACES[placement]
    source, target = sample(variant, layers=2), sample(variant, layers=len(places))
    weights = randomised(source)
    large, _, plan = grown(weights, source, target, depth="random", placement=placement)
    assert [layer.continued for layer in plan.layers["layers"]] == places
    fresh, _, _ = grown(weights, source, target, method="random")
    for row in plan.target.rows():
        place = None if row.layer is None else places[row.layer]
        if row.layer is not None and place is None:
            assert torch.equal(large[row.name], fresh[row.name]), row.name
        else:
            origin = row.template if row.layer is None else row.template.replace("{i}", str(place))
            assert torch.equal(large[row.name], weights[origin]), row.name


def test_width_may_grow_besides():
    """Old layers and all else as in a growth of width alone."""
    source = sample("bert-pre-ln", layers=1)
    weights = randomised(source)
    both, _, _ = grown(weights, source, sample("bert-pre-ln", **times(2, layers=3)), depth="random", placement="last")
    wide, _, _ = grown(weights, source, sample("bert-pre-ln", **times(2, layers=1)))
    for name, tensor in wide.items():
        assert torch.equal(both[name], tensor), name


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("lemon", "random")])
def test_other_methods_need_a_layer_to_make_others_of(method):
    source, target = sample("bert-pre-ln", layers=0), sample("bert-pre-ln", layers=2)
    with pytest.raises(UserError, match="the source has no layers of which 2 could be made; use lemon with depth 'ran"):
        planned(source, target, method=method)
    with pytest.raises(UserError, match="the source has no layers"):
        planned(source, target)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "mango"])
def test_a_model_without_layers_may_grow_in_width(method):
    """No method stumbles over there being none."""
    source = sample("bert-pre-ln", layers=0)
    sizes = {} if method in ("stack", "interpolate") else times(2, layers=0, mlp=40)
    _, target, plan = grown(randomised(source), source, sample("bert-pre-ln", **{**sizes, "layers": 0}), method=method)
    assert plan.target.parameters == models.architecture_of(target).parameters


def test_mango_grows_layers_alone():
    with pytest.raises(UserError, match="mango grows the matrices of layers, and there are none"):
        planned(sample("bert-pre-ln", layers=0), sample("bert-pre-ln", **times(2, layers=0, mlp=40)), method="mango")


def test_a_family_that_has_no_model_without_layers_says_so():
    sizes = ModelSizes(family="gpt2", layers=0, hidden=8, heads=2)
    with pytest.raises(UserError, match="models of family 'gpt2' have at least 1 layer; choose more"):
        models.family_of(sizes)
    config = GPT2Config(n_layer=0).to_dict() | {"architectures": ["GPT2LMHeadModel"]}
    with pytest.raises(UserError, match="n_layer 0 is impossible; a size is a whole number of at least 1"):
        models.recognise(config, "config.json")
    assert models.recognise(BertConfig(num_hidden_layers=0).to_dict() | {"architectures": ["BertForMaskedLM"]}, "x")


def test_from_scratch_needs_no_layer():
    source = sample("vit", layers=0)
    large, _, plan = grown(randomised(source), source, sample("vit", layers=2), method="random")
    assert set(large) == {row.name for row in plan.target.rows()}


@pytest.mark.parametrize("layers", [0, 2])
def test_a_plan_with_fresh_layers_is_the_same_when_read_again(tmp_path, layers):
    source, target = sample("bert", layers=layers), sample("bert", layers=4)
    weights = randomised(source)
    large, _, plan = grown(weights, source, target, depth="random")
    plan_file.save(plan, tmp_path)
    again = plan_file.load(tmp_path, plan.source, plan.target, plan.init_std)
    assert again.layers == plan.layers and again.tensors == plan.tensors
    for name, tensor in PlanExecutor(again).tensors(rows_of(weights)):
        assert torch.equal(tensor, large[name]), name


@pytest.mark.parametrize("depth, placement", [("random", "stack"), ("zero", "last"), ("cancel", "stack")])
def test_places_that_are_none_are_refused(depth, placement):
    with pytest.raises(UserError, match=f"placement '{placement}' is of depth 'copy"):
        planned(sample("bert"), sample("bert", layers=4), depth=depth, placement=placement)
