"""Tables equal the models: names, shapes, tied names, FLOPs against torch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pipeline import models
from pipeline.config import ModelSizes
from pipeline.flops import cost

TEXT = {"kind": "text", "vocab_size": 53, "block": 12, "scored": 3}
IMAGES = {"kind": "images", "size": 8, "channels": 3, "class_names": ["a", "b", "c"]}
FACTS = {"text": TEXT, "images": IMAGES}
PATCH = {"text": None, "images": 4}
BATCH = 2


def make(name: str, **sizes):
    family = models.family(name)
    wanted = {"layers": 2, "hidden": 12, "heads": 3, "mlp": 20, "patch": PATCH[family.data], **sizes}
    return family, family.configure(ModelSizes(family=name, **wanted), FACTS[family.data])


def inputs(kind: str) -> dict[str, torch.Tensor]:
    if kind == "images":
        return {"pixel_values": torch.randn(BATCH, 3, 8, 8)}
    ids = torch.randint(53, (BATCH, 12))
    return {"input_ids": ids, "masked_positions": torch.stack([torch.randperm(12)[:3] for _ in range(BATCH)])}


@pytest.mark.parametrize("name", models.FAMILIES)
def test_table_names_and_shapes_equal_the_model(name):
    family, config = make(name)
    table, model = family.table(config), models.build(config)
    wanted = {row.module: table.shape(row) for row in table.rows()}
    assert wanted == {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert table.parameters == sum(p.numel() for p in model.parameters())
    assert set(table.aliases) == set(model.state_dict()) - set(wanted)


@pytest.mark.parametrize("name", models.FAMILIES)
def test_published_names_are_those_of_saved_files(name, tmp_path):
    from safetensors import safe_open

    family, config = make(name)
    models.build(config).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert set(file.keys()) == {row.name for row in family.table(config).rows()}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("name", models.FAMILIES)
def test_flops_equal_torchs_counter_exactly(name, checkpointing):
    family, config = make(name)
    model = models.build(config, attention="eager").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    expected = cost(family.table(config), family.positions(config, FACTS[family.data]))
    with FlopCounterMode(display=False) as counter:
        logits = model(**inputs(family.data)).logits
    assert counter.get_total_flops() == BATCH * expected.forward
    with FlopCounterMode(display=False) as counter:
        logits.float().square().sum().backward()
    assert counter.get_total_flops() == BATCH * (expected.backward + (expected.recompute if checkpointing else 0))


@pytest.mark.parametrize("name", models.FAMILIES)
def test_decay_is_for_matrices_that_multiply(name):
    family, config = make(name)
    for row in family.table(config).rows():
        assert row.decay == (row.use in ("matmul", "both")), row.name
