"""What a family says of its config and its modules is complete: every key, every norm, every kind of embedding."""

import dataclasses
import inspect
import re

import pytest
import torch
from torch import nn

from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.growth.verification.probe import fitted, probe, without_epsilon
from pipeline.models.config_keys import COMMON_KEYS, DROP_PATH_RATE
from tests.helpers.samples import VARIANTS, sample

OF_OTHERS = ("width", "undeclared")
"""Lists that say more of some keys of other lists."""


@pytest.mark.parametrize("name", models.FAMILIES)
def test_every_key_of_the_config_is_in_one_list(name):
    """A key that a new version of transformers brings fails here, until someone decides what a growth does with it."""
    keys = models.FAMILIES[name].keys
    lists = {field.name: getattr(keys, field.name) for field in dataclasses.fields(keys) if field.name not in OF_OTHERS}
    listed = [key for each_list in lists.values() for key in each_list]
    assert sorted(set(listed)) == sorted(listed), "a key is in two lists"
    assert not set(models.FAMILIES[name].config_class().to_dict()) - set(listed)
    assert set(keys.width) <= set(keys.sizes) and set(keys.undeclared) <= {*keys.sizes, *keys.training}


@pytest.mark.parametrize("name", models.FAMILIES)
def test_the_keys_of_a_family_exist(name):
    """A misspelled key would let a contradiction through, or refuse a growth."""
    keys, common = models.FAMILIES[name].keys, COMMON_KEYS.function  # ViT has no tie_word_embeddings
    declared = set(models.FAMILIES[name].config_class().to_dict())
    assert {*keys.sizes, *keys.function, *keys.derived} - {*common, *keys.undeclared} <= declared


@pytest.mark.parametrize("name", models.FAMILIES)
def test_undeclared_keys_are_those_that_the_code_reads_besides(name):
    """`getattr(config, "head_dim", …)`: a key that decides the sizes of a model, and that its config's class lacks; the
    rate of stochastic depth is read by `models.build`."""
    family = models.FAMILIES[name]
    read = {key for head in family.heads for key in re.findall(r'getattr\((?:self\.)?config, "(\w+)"', code(head))}
    read |= {DROP_PATH_RATE} if family.drops_paths else set()
    assert set(family.keys.undeclared) == read - set(family.config_class().to_dict())


def code(head: models.Head) -> str:
    """The source of the modules that the classes of a head's model come from, those that all models share aside."""
    modules = {inspect.getmodule(each) for each in head.model_class.__mro__}
    return "".join(inspect.getsource(module) for module in modules if ".models." in module.__name__)


@pytest.mark.parametrize("variant", VARIANTS)
def test_rotary_positions_are_declared(variant):
    """`Attention(rope=True)`: by it a growth keeps the size of heads. The config of a rotary model has their base."""
    config = sample(variant)
    rotary = bool({"rope_parameters", "rope_theta"} & set(config.to_dict()))
    said = [attention.rope for attention in models.architecture_of(config).attentions]
    assert said == [rotary] * len(said), "rotary positions and Attention(rope=True) go together"


OPTIONAL = [("kv_heads", 3), ("head_dim", 8), ("tied", True), ("rope_theta", 5e5), ("patch", 2), ("drop_path", 0.2)]


@pytest.mark.parametrize("size, value", OPTIONAL)
@pytest.mark.parametrize("name", models.FAMILIES)
def test_a_size_has_an_effect_or_is_refused(name, size, value):
    family, base = models.FAMILIES[name], {"family": name, "layers": 2, "hidden": 24, "heads": 6, "mlp": 48}
    without, sizes = ModelSizes(**base), ModelSizes(**base, **{size: value})
    assert models.family_of(without) is family
    if family.resize(sizes) != family.resize(without):
        assert models.family_of(sizes) is family
        return
    with pytest.raises(UserError, match=f"^models of family '{name}' have no {size}, got {value}; remove it"):
        models.family_of(sizes)


@pytest.mark.parametrize(
    "sizes, complaint",
    [
        ({"heads": 3, "head_dim": 5}, "a head has 5 entries; choose an even head_dim"),
        ({"heads": 6, "kv_heads": 4}, "heads 6 is no multiple of kv_heads 4; choose a divisor"),
    ],
)
def test_sizes_that_rotary_models_cannot_have_are_refused(sizes, complaint):
    facts = {"kind": "text", "vocab_size": 61, "block": 14, "scored": 3}
    with pytest.raises(UserError, match=complaint):
        models.trained(ModelSizes(family="qwen3", layers=1, hidden=24, **sizes), facts)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_only_keys_that_the_code_reads_give_biases(name):
    """A config may hold any key: transformers keeps it, and the model may not care."""
    config = sample(name)
    config.update({"attention_bias": True, "mlp_bias": True})
    built = {parameter for parameter, _ in models.build(config, device="meta").named_parameters()}
    assert {row.module_name for row in models.architecture_of(config).rows()} == built


def test_heads_need_not_share_the_width():
    """As in Qwen3-0.6B; and a head may be the token embedding."""
    facts = {"kind": "text", "vocab_size": 61, "block": 14, "scored": 3}
    sizes = ModelSizes(
        family="qwen3", layers=1, hidden=24, heads=5, kv_heads=1, head_dim=8, mlp=48, tied=True, rope_theta=1e6
    )
    config = models.trained(sizes, facts)
    assert models.architecture_of(config).sizes()["head_dim"] == 8 and config.tie_word_embeddings
    assert models.rotation(config)["rope_theta"] == 1e6
    assert models.build(config)(input_ids=torch.zeros(1, 14, dtype=torch.long)).logits.shape == (1, 14, 61)


@pytest.mark.parametrize("variant", VARIANTS)
def test_taking_the_epsilon_away_reaches_every_norm(variant):
    model = models.build(sample(variant))
    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    value = models.architecture_of(model.config).epsilon.value
    assert norms and {epsilon(norm) for norm in norms} == {value}
    without_epsilon(model)
    assert {epsilon(norm) for norm in norms} == {value * 1e-9}


def epsilon(norm: nn.Module) -> float:
    return norm.eps if hasattr(norm, "eps") else norm.variance_epsilon


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_probe_touches_every_kind_of_embedding(variant):
    """Its arguments are those of the model's forward, and every table of the architecture gets a gradient."""
    config = sample(variant)
    model = models.build(config)
    outputs = model(**fitted(probe(config), model))
    sum(outputs[name].square().sum() for name in models.architecture_of(config).outputs).backward()
    parameters = dict(model.named_parameters())
    tables = [row for row in models.architecture_of(config).rows() if row.use in ("lookup", "both")]
    for row in tables:
        assert parameters[row.module].grad.any(), row.name


ANSWERING = [variant for variant in VARIANTS if variant.endswith("question-answering")]


@pytest.mark.parametrize("variant", ANSWERING)
def test_answers_to_questions_have_a_begin_and_an_end(variant):
    """The code of transformers splits what such a model gives out in two."""
    config = sample(variant)
    config.num_labels = 3
    with pytest.raises(UserError, match="has 2 labels, for begin and end, and not 3"):
        models.architecture_of(config)
