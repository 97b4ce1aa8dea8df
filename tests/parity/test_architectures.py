"""Architectures equal the models: names, shapes, tied names, fresh values, FLOPs against torch's own counter."""

import pytest
import torch
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

from pipeline import models
from pipeline.accounting.flops import cost
from pipeline.models.config_keys import DROP_PATH_RATE
from pipeline.training.subject import checkpoint_layers
from tests.helpers.samples import IMAGE, POSITIONS, VARIANTS, VOCAB, facts, sample

BATCH = 2
TRAINED = {
    "bert-pre-ln",
    "bert-pre-ln transform",
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "modernbert",
    "distilbert",
    "distilbert untied",
}
"""Masked language models whose forward takes `masked_positions`; the others score everywhere."""


def inputs(variant: str) -> dict[str, torch.Tensor]:
    if facts(variant)["kind"] == "images":
        return {"pixel_values": torch.randn(BATCH, 3, IMAGE, IMAGE)}
    text = {"input_ids": torch.randint(VOCAB, (BATCH, POSITIONS))}
    if variant in TRAINED:
        text["masked_positions"] = torch.stack([torch.randperm(POSITIONS)[:3] for _ in range(BATCH)])
    return text


def positions(variant: str, config) -> dict[str, int]:
    everywhere = {} if variant in TRAINED else {"scored": POSITIONS}
    return models.of_config(config).positions(config, facts(variant) | everywhere)


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_shapes_equal_the_model(variant):
    config = sample(variant, heads=4, kv_heads=2, hidden=16, head_dim=6)
    architecture, model = models.architecture_of(config), models.build(config)
    shapes = {row.module: architecture.shape(row) for row in architecture.rows()}
    assert shapes == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert architecture.parameters == sum(p.numel() for p in model.parameters())
    assert set(architecture.module_names.values()) == set(model.state_dict())
    assert set(architecture.outputs) <= set(model(**inputs(variant)).keys())


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_names_are_those_of_saved_files(variant, tmp_path):
    config = sample(variant)
    models.build(config).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {row.name for row in models.architecture_of(config).rows()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_config_says_its_head(variant):
    config = sample(variant)
    model = models.build(config)
    assert models.of_config(config).head(config).class_name in {c.__name__ for c in type(model).__mro__}
    assert (
        models.recognise({**config.to_dict(), "architectures": config.architectures}, "x")[1].architectures
        == config.architectures
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_fresh_values_are_those_of_the_model(variant):
    """Standard deviations within 4 of their standard errors, at a width that makes them small; constants exactly."""
    config = sample(variant, hidden=64, heads=16, mlp=192, vocab=400, positions=100)
    parameters = dict(models.build(config, seed=3).named_parameters())
    for row in models.architecture_of(config).rows():
        values = parameters[row.module].detach()
        if row.fresh == "normal":
            std, error = row.std * models.initializer_range(config), 4 / (2 * values.numel()) ** 0.5
            assert abs(values.std().item() / std - 1) < error + 0.01, (
                row.name
            )  # a table may hold a padding row of zeros
        else:
            assert (values + row.offset == (row.std if row.fresh == "ones" else 0.0)).all(), row.name


@pytest.mark.parametrize("rate", [0.0, 0.1], ids=["keeping", "dropping"])
@pytest.mark.parametrize("every", [0, 1, 2], ids=["plain", "checkpointing", "checkpointing-2nd"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_equal_torchs_counter_exactly(variant, every, rate):
    """every: of so many layers the first is checkpointed; 0: none. rate: of every kind of dropout, of stochastic depth
    too."""
    config = sample(variant, layers=3, heads=4, kv_heads=2, hidden=16, head_dim=6)
    keys = models.of_config(config).keys
    config.update({key: rate for key in (*keys.dropout, DROP_PATH_RATE) if key in keys.training})
    model = models.build(config, attention="eager").train()
    if every:
        checkpoint_layers(model, every)
    architecture = models.architecture_of(config)
    drops = models.drops_branches(config)
    expected = cost(architecture, positions(variant, config), every=every or 1, drops=drops)
    with FlopCounterMode(display=False) as counter:
        outputs = model(**inputs(variant))
    assert counter.get_total_flops() == BATCH * expected.forward
    with FlopCounterMode(display=False) as counter:
        sum(outputs[name].float().square().sum() for name in architecture.outputs).backward()
    assert counter.get_total_flops() == BATCH * (expected.backward + (expected.recompute if every else 0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_decay_is_for_matrices_that_multiply(variant):
    for row in models.architecture_of(sample(variant)).rows():
        assert row.decay == (row.use in ("matmul", "both")), row.name
