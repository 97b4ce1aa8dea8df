"""Learned growth goes through the same formula: maps and layer coefficients are parameters, the target's loss moves them.

As LiGO does it (arXiv:2303.00980): every E and R a dense matrix, every layer a learned mixture of all source layers, a few steps of
the target's own loss on the grown model.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from pipeline import models
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.maps import DenseMap, Maps, SpaceMap
from pipeline.growth.method import ExpansionOptions, LayerOrigin, Method, Term
from pipeline.growth.methods import fpi, lemon
from pipeline.growth.plan import GrowthPlan, make
from tests.helpers.growing import dense, growth, planned, randomised, rows_of, times
from tests.helpers.samples import CLASSES, IMAGE, POSITIONS, VOCAB, sample

STEPS, RATE = 20, 0.01


class Learned(nn.Module):
    """A matrix for every E, R and gain that a tensor of the model uses, and coefficients (L_T, L_S); all from a known growth plus noise."""

    def __init__(self, source, target, start: Maps):
        super().__init__()
        self.source, self.target = models.architecture_of(source), models.architecture_of(target)
        self.matrices, self.start = nn.ParameterDict(), start
        generator = torch.Generator().manual_seed(0)
        for name, chosen in start.items():
            for side, roles in (("writes", ("writes", "scales")), ("reads", ("reads",)), ("gains", ("gain",))):
                if self.source.spaces[name].size < self.target.spaces[name].size and any(
                    p.touches(name, *roles) for p in self.target.params
                ):
                    known = dense(getattr(chosen, side)).float()
                    self.matrices[f"{name} {side}"] = nn.Parameter(
                        known + 1e-3 * torch.randn(known.shape, generator=generator)
                    )
        owners = torch.arange(self.target.layers) * self.source.layers // self.target.layers
        known = F.one_hot(owners, self.source.layers)
        self.mixture = nn.Parameter(known + 1e-3 * torch.randn(known.shape, generator=generator))

    def maps(self) -> Maps:
        return {name: self._space(name, chosen) for name, chosen in self.start.items()}

    def _space(self, name: str, chosen: SpaceMap) -> SpaceMap:
        """The learned sides of a space; those that no tensor uses stay."""
        sides = {
            side: DenseMap(self.matrices[f"{name} {side}"])
            for side in ("writes", "reads", "gains")
            if f"{name} {side}" in self.matrices
        }
        return replace(chosen, **sides, blind=None)

    def layers(self, source: int, target: int, options: ExpansionOptions) -> tuple[LayerOrigin, ...]:
        return tuple(LayerOrigin(tuple(Term(j, self.mixture[i, j]) for j in range(source))) for i in range(target))

    def method(self) -> Method:
        return Method("learned", lambda *_: {"": self.maps()}, self.layers, lambda *_: [], lambda *_: ["it is learned"])

    def plan(self) -> GrowthPlan:
        return make(self.source, self.target, self.method(), ExpansionOptions(method="learned"))


def words() -> tuple[dict[str, Tensor], Tensor]:
    """Each token follows from the one before; the masked ones are to be told."""
    generator = torch.Generator().manual_seed(1)
    first, step = torch.randint(VOCAB, (16, 1), generator=generator), torch.arange(POSITIONS)
    tokens = (first + 5 * step) % VOCAB
    hidden = torch.rand(tokens.shape, generator=generator) < 0.3
    return {"input_ids": tokens.masked_fill(hidden, 0)}, tokens.masked_fill(~hidden, -100).flatten()


def pictures() -> tuple[dict[str, Tensor], Tensor]:
    """Noise around one picture per class."""
    generator = torch.Generator().manual_seed(1)
    kinds = torch.arange(24) % CLASSES
    centres = torch.randn(CLASSES, 3, IMAGE, IMAGE, generator=generator)
    return {"pixel_values": centres[kinds] + 0.3 * torch.randn(24, 3, IMAGE, IMAGE, generator=generator)}, kinds


TASKS = {"bert-pre-ln": words, "bert": words, "llama tied": words, "vit": pictures}


@pytest.mark.parametrize("start", [fpi, lemon], ids=["from fpi", "from lemon"])
@pytest.mark.parametrize("variant, data", TASKS.items(), ids=TASKS)
def test_twenty_steps_of_the_targets_loss_lower_it(variant, data, start):
    source, target = sample(variant), sample(variant, **times(2, layers=4))
    weights = {name: tensor.float() for name, tensor in randomised(source, scale=0.15).items()}
    learned = Learned(
        source, target, start.choose(models.architecture_of(source), models.architecture_of(target), 0)[""]
    )
    plan = learned.plan()
    grower = PlanExecutor(
        plan,
        learned.source,
        learned.target,
        models.initializer_range(target),
        maps={"": learned.maps()},
        dtype=torch.float32,
    )
    model, modules, (inputs, labels) = (
        models.build(target),
        {row.name: row.module for row in learned.target.rows()},
        data(),
    )
    optimizer, losses = torch.optim.Adam(learned.parameters(), RATE), []
    for step in range(STEPS):
        tensors = {modules[name]: tensor for name, tensor in grower.tensors(rows_of(weights))}
        loss = F.cross_entropy(functional_call(model, tensors, kwargs=inputs).logits.flatten(0, -2), labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            silent = [
                name
                for name, parameter in learned.named_parameters()
                if parameter.grad is None or not parameter.grad.any()
            ]
            assert not silent, f"no gradient reaches {silent}"
            assert learned.mixture.grad.all()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["bert-pre-ln", "vit", "gpt2", "dinov2", "qwen3"])
def test_learned_maps_that_equal_a_known_growth_give_it(variant):
    """Dense maps and coefficients in place of index maps: the same tensors, through the same formula."""
    source, target = sample(variant), sample(variant, **times(2, layers=4))
    weights = randomised(source)
    known, target = planned(source, target, method="fpi")
    learned = Learned(source, target, growth(known, source, target).maps[""]).double()
    with torch.no_grad():
        for name, matrix in learned.matrices.items():
            space, side = name.split()
            matrix.copy_(dense(getattr(learned.start[space], side)))
        learned.mixture.copy_(F.one_hot(torch.arange(4) % 2, 2))
        grower = PlanExecutor(learned.plan(), learned.source, learned.target, 0.02, maps={"": learned.maps()})
        wanted = dict(growth(known, source, target).tensors(rows_of(weights)))
        for name, tensor in grower.tensors(rows_of(weights)):
            assert torch.allclose(tensor, wanted[name], atol=1e-12), name
