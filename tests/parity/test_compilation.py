"""What torch.compile sees of the layers: one whole graph for all of a family's, in training and in evaluation."""

from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline import models
from pipeline.growth.verification.probe import fitted, probe
from pipeline.models.config_keys import DROP_PATH_RATE
from pipeline.training.compilation import compile_layers
from pipeline.training.subject import of_model
from tests.helpers.rotation import rotated
from tests.helpers.samples import VARIANTS, sample

FAMILIES = [name for name in VARIANTS if " " not in name]


def computed(variant: str, checkpointing: bool, compiled: bool, dropped: float = 0.0) -> list[torch.Tensor]:
    """Output in training and in evaluation, and the gradients. dropped: rate of stochastic depth."""
    config = sample(variant, layers=4)
    config.update({DROP_PATH_RATE: dropped} if dropped else {})
    config.use_cache = False
    trained = of_model(models.build(config, seed=3), checkpointing)
    if compiled:
        compile_layers(trained.layers, zero_stage=1)
    inputs = fitted(probe(config), trained.module)
    torch.manual_seed(1)
    output = trained.module.train()(**inputs)[0]
    output.square().sum().backward()
    with torch.no_grad():
        evaluated = trained.module.eval()(**inputs)[0]
    gradients = [parameter.grad for parameter in trained.module.parameters() if parameter.grad is not None]
    return [output.detach(), evaluated, *gradients]


def kinds_of_layers(variant: str) -> int:
    """How many there are by what they have: ModernBERT's first layer lacks a norm."""
    had: dict[int, set[str]] = {}
    for row in models.architecture_of(sample(variant)).rows():
        if row.layer is not None:
            had.setdefault(row.layer, set()).add(row.template)
    return len(set(map(frozenset, had.values())))


@rotated(one_in=3, of=("variant", "checkpointing"), alike=lambda variant, checkpointing: checkpointing)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("variant", FAMILIES)
def test_layers_share_a_graph_without_breaks(monkeypatch, variant, checkpointing):
    """Traced alone, with nothing generated from the graphs, so that the same kernels run: to the bit. Where a gradient
    of the embeddings is asked for, evaluation has a graph of its own for the layer that gets them."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    eager, traced = (computed(variant, checkpointing, compiled) for compiled in (False, True))
    graphs = 2 * kinds_of_layers(variant)
    assert counters["stats"]["unique_graphs"] in ((graphs, graphs + 1) if checkpointing else (graphs,))
    assert sum(counters["graph_break"].values()) == 0
    assert len(eager) == len(traced) > 10
    assert all(torch.equal(one, other) for one, other in zip(eager, traced, strict=True))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("variant", ["bert-pre-ln", "vit"])
def test_layers_that_drop_their_branches_at_different_rates_share_a_graph(monkeypatch, variant, checkpointing):
    """The draws of eager layers, to the bit."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    eager, traced = (computed(variant, checkpointing, compiled, dropped=0.5) for compiled in (False, True))
    assert counters["stats"]["unique_graphs"] == 2 and sum(counters["graph_break"].values()) == 0
    assert all(torch.equal(one, other) for one, other in zip(eager, traced, strict=True))
    assert not torch.equal(eager[0], computed(variant, checkpointing, compiled=False)[0])
