"""Stochastic depth: against formulas written out here, in training alone, and without a trace in what is saved."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.expansion import fit, target
from pipeline.growth.verification.probe import fitted, probe
from pipeline.models import drop_path, starts
from pipeline.models.config_keys import DROP_PATH_RATE
from pipeline.training.subject import of_model
from tests.helpers.samples import facts, sample

RATE, LAYERS, SAMPLES = 0.4, 3, 40_000
OURS = [name for name, family in models.FAMILIES.items() if family.drops_paths]
HAVING = [name for name, family in models.FAMILIES.items() if "drop_path" in family.optional_sizes]


def config(name: str = "vit", rate: float | None = RATE, **sizes: int):
    """Of a tiny model; None: its config says nothing of a rate."""
    made = sample(name, layers=LAYERS, **sizes)
    if rate is not None:
        made.update({DROP_PATH_RATE: rate})
    return made


def output(model: nn.Module, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return model(**fitted(probe(model.config), model))[0]


def sizes(name: str, **more: object) -> ModelSizes:
    patch = {"patch": 4} if models.family(name).data == "images" else {}
    return ModelSizes(family=name, layers=LAYERS, hidden=12, heads=3, mlp=24, **patch, **more)


def attended(layer: nn.Module, hidden: Tensor) -> Tensor:
    """The branch of ViT's attention, written out: (B, S, D)."""
    part, heads = layer.attention, 3
    normed = F.layer_norm(hidden, hidden.shape[-1:], layer.layernorm_before.weight, layer.layernorm_before.bias, 1e-2)
    query, key, value = (
        F.linear(normed, each.weight, each.bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for each in (part.q_proj, part.k_proj, part.v_proj)
    )
    shares = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
    return F.linear((shares @ value).transpose(1, 2).flatten(2), part.o_proj.weight, part.o_proj.bias)


def mapped(layer: nn.Module, hidden: Tensor) -> Tensor:
    """The branch of its MLP."""
    normed = F.layer_norm(hidden, hidden.shape[-1:], layer.layernorm_after.weight, layer.layernorm_after.bias, 1e-2)
    return F.linear(
        F.gelu(F.linear(normed, layer.mlp.fc1.weight, layer.mlp.fc1.bias)), layer.mlp.fc2.weight, layer.mlp.fc2.bias
    )


@pytest.fixture(scope="module")
def layer() -> nn.Module:
    """The last layer of a ViT with weights large enough that its branches matter, float64."""
    made = config()
    made.initializer_range = 0.5
    return models.build(made, seed=2).double().train().vit.layers[-1]


def test_a_layer_has_one_of_four_outputs_and_each_as_often_as_it_should(layer):
    """Every sample is the same, so that each is a draw; five deviations are allowed."""
    one = torch.randn(1, 2, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    with torch.no_grad():
        found = layer(one.expand(SAMPLES, -1, -1))
        expected, mean = torch.zeros_like(one), torch.zeros_like(one)
        for first in (0, 1 / (1 - RATE)):
            middle = one + first * attended(layer, one)
            for second in (0, 1 / (1 - RATE)):
                result = middle + second * mapped(layer, middle)
                share = (1 - RATE if first else RATE) * (1 - RATE if second else RATE)
                hits = (found - result).abs().amax((1, 2)) < 1e-9
                assert abs(hits.sum() - share * SAMPLES) < 5 * math.sqrt(SAMPLES * share * (1 - share))
                expected += share * result
                mean += hits.double().mean() * result
        deviations = found.std(0) / math.sqrt(SAMPLES)
        assert torch.allclose(mean, found.mean(0, keepdim=True), atol=1e-9), "there is no fifth output"
        assert ((found.mean(0) - expected[0]).abs() < 5 * deviations + 1e-12).all()
        plain = one + attended(layer, one)
        assert torch.allclose(layer.eval()(one), plain + mapped(layer, plain), atol=1e-12), "nothing is dropped"
    layer.train()


def test_the_rate_grows_evenly_from_the_first_layer_to_the_last():
    assert drop_path.rates(12, 0.1) == pytest.approx(torch.linspace(0, 0.1, 12).tolist())
    assert drop_path.rates(1, 0.1) == [0] and drop_path.rates(0, 0.1) == []
    model = models.build(config(hidden=12)).train()
    pixels = torch.randn(SAMPLES // 4, 3, 8, 8)
    with torch.no_grad():
        model(pixel_values=pixels)
    for number, each in enumerate(model.vit.layers):
        rate = RATE * number / (LAYERS - 1)
        for end in (each.attention.o_proj, each.mlp.fc2):
            dropped = (end.scale == 0).double().mean()
            assert torch.allclose(end.scale[end.scale != 0], torch.tensor(1 / (1 - rate)))
            assert abs(dropped - rate) <= 5 * math.sqrt(rate * (1 - rate) / len(end.scale))


@pytest.mark.parametrize("name", OURS)
def test_both_branches_of_every_layer_are_dropped_for_a_whole_sample(name):
    model = models.build(config(name)).train()
    hidden = torch.randn(64, 4, 12)
    for number, block in enumerate(models.architecture_of(model.config).blocks()):
        layer = model.get_submodule(block)
        ends = [module for module in layer.modules() if hasattr(module, "scale")]
        result = layer(hidden, None)
        untouched = [bool(torch.equal(one, other)) for one, other in zip(result, hidden, strict=True)]
        assert len(ends) == 2 and untouched == (sum(end.scale for end in ends) == 0).tolist()
        assert any(untouched) == (number > 0) and not all(untouched)


@pytest.mark.parametrize("name", OURS)
def test_a_rate_of_zero_changes_nothing(name):
    """To the bit, what comes behind from the same generator included."""
    found = []
    for rate in (None, 0.0):
        model = models.build(config(name, rate), seed=4).train()
        assert not any(hasattr(module, "scale") for module in model.modules())
        found.append((output(model), torch.rand(3)))
    assert all(map(torch.equal, *found))
    dropping = models.build(config(name), seed=4)
    assert torch.equal(output(dropping.eval()), output(models.build(config(name, None), seed=4).eval()))
    assert not torch.equal(output(dropping.train()), found[0][0])
    assert torch.equal(output(dropping), output(dropping)) and not torch.equal(output(dropping, 2), output(dropping))


@pytest.mark.parametrize("name", HAVING)
def test_a_saved_model_is_the_models_own(name, tmp_path):
    """Nothing is missing or unexpected in the class that anybody loads it with, and it computes the same."""
    model = models.build(config(name), seed=4)
    assert list(model.state_dict()) == list(models.build(config(name, None), seed=4).state_dict())
    model.save_pretrained(tmp_path)
    public = models.of_config(model.config).heads[0].public_class
    loaded, info = public.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(output(loaded.eval()), output(model.eval())) and getattr(loaded.config, DROP_PATH_RATE) == RATE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HAVING)
def test_a_layer_that_is_computed_again_drops_the_same(name, dtype):
    """With dropout beside it, whose masks lie in the same stream."""
    found = []
    for every in (0, 1):
        made = config(name)
        made.update({"hidden_dropout_prob": 0.2, "use_cache": False})
        model = of_model(models.build(made, seed=4).to(dtype), every).module.train()
        result = output(model)
        assert result.dtype == dtype
        result.float().square().sum().backward()
        found.append([result, *(each.grad for each in model.parameters() if each.grad is not None)])
    assert len(found[0]) > 20 and all(map(torch.equal, *found))


def test_under_autocast_branches_stay_in_16_bits():
    model = models.build(config(), seed=4).train()
    kinds = []
    model.vit.layers[1].mlp.register_forward_hook(lambda *call: kinds.append(call[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        output(model)
    assert kinds == [torch.bfloat16]


@pytest.mark.parametrize("name", HAVING)
def test_a_model_of_a_run_has_the_rate_that_it_says(name):
    made = models.trained(sizes(name, drop_path=0.3), facts(name))
    assert getattr(made, DROP_PATH_RATE) == 0.3 and DROP_PATH_RATE in models.family(name).keys.training
    assert getattr(models.trained(sizes(name), facts(name)), DROP_PATH_RATE) == 0.0
    assert sizes(name, drop_path=0) == sizes(name), "0 is what nothing says"


@pytest.mark.parametrize("name", sorted(set(models.FAMILIES) - set(HAVING)))
def test_families_that_have_none_say_so(name):
    with pytest.raises(
        UserError, match=f"models of family '{name}' have no drop_path, got 0.1; remove it \\(bert-pre-"
    ):
        models.family_of(sizes(name, drop_path=0.1))
    assert models.family_of(sizes(name, drop_path=0.0))


@pytest.mark.parametrize("rate", [1, 1.0, -0.1, "0.1", None, float("nan")])
def test_a_rate_in_a_file_that_is_none_is_refused(rate):
    made = config()
    setattr(made, DROP_PATH_RATE, rate)
    with pytest.raises(UserError, match=r"drop_path_rate is .*; it must be at least 0 and below 1"):
        models.build(made)


@pytest.mark.parametrize("name", HAVING)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_a_target_has_its_own_rate(name, rate):
    """Whatever the source has; also one whose file says nothing, and a folder that a stage starts from."""
    small = config(name)
    large = ModelSizes.model_validate({**sizes(name).model_dump(), "hidden": 24, "mlp": 48, "drop_path": rate})
    assert getattr(target.of_sizes(small, large, facts(name)), DROP_PATH_RATE) == rate
    assert getattr(starts.with_training_keys(small, large), DROP_PATH_RATE) == rate
    silent = sample(name, layers=LAYERS, hidden=24, mlp=48)
    assert getattr(target.adopt(small, silent), DROP_PATH_RATE, 0.0) == 0.0


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("dropout, rate", [(0.0, 0.0), (0.1, 0.0), (None, RATE)])
def test_a_fit_with_a_dropout_of_its_own_drops_no_branches(tmp_path, name, dropout, rate):
    (tmp_path / "target.json").write_text(models.config_text(config(name)))
    stage = SimpleNamespace(target="target.json", dropout=dropout)
    wanted = fit.target(SimpleNamespace(path=tmp_path), stage, None)
    assert getattr(wanted, DROP_PATH_RATE) == rate and wanted.hidden_dropout_prob == (dropout or 0.0)


@pytest.mark.parametrize("variant", ["dinov2", "dinov2-with-registers"])
def test_dinov2_drops_as_its_own_code_does(variant):
    """The same rate in every layer; nothing of this package beside it."""
    model = models.build(config(variant))
    assert not any(hasattr(module, "scale") for module in model.modules())
    assert [layer.drop_path.drop_prob for layer in model.base_model.encoder.layer] == [RATE] * LAYERS
