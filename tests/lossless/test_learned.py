"""Learned growth goes through the same formula: maps and layer coefficients are parameters, the target's loss moves
them.

As LiGO does it (arXiv:2303.00980): every E and R a dense matrix, every layer a learned mixture of all source layers, a
few steps of the target's own loss on the grown model.
"""

from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

import pipeline
from pipeline import models
from pipeline.errors import UserError
from pipeline.growth import methods, plan_file
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.maps import DenseMap, Maps, SpaceMap
from pipeline.growth.method import GrowthContext, LayerOrigin, Layers, LearnedMethod, MethodOptions, Term
from pipeline.growth.plan import GrowthPlan, build_plan, plan_growth
from pipeline.models.architecture import Architecture
from tests.helpers.checkpoints import saved, target_config_file
from tests.helpers.cli import lemon
from tests.helpers.growing import dense, planned, randomised, rows_of, times
from tests.helpers.samples import CLASSES, IMAGE, POSITIONS, VOCAB, sample

STEPS, RATE = 20, 0.01


class Coefficients(nn.Module):
    """A matrix for every E, R and gain that a tensor of the model uses, and coefficients (L_T, L_S); all from a known
    growth plus noise."""

    def __init__(self, source: Architecture, target: Architecture, start: Maps):
        super().__init__()
        self.source, self.target, self.start = source, target, start
        self.matrices = nn.ParameterDict()
        generator = torch.Generator().manual_seed(0)
        for name, space_map in start.items():
            for side in self._sides(name):
                known = dense(getattr(space_map, side)).float()
                noise = 1e-3 * torch.randn(known.shape, generator=generator)
                self.matrices[f"{name} {side}"] = nn.Parameter(known + noise)
        layers = self.source.stacks[0].layers, self.target.stacks[0].layers
        known = F.one_hot(torch.arange(layers[1]) * layers[0] // layers[1], layers[0])
        self.mixture = nn.Parameter(known + 1e-3 * torch.randn(known.shape, generator=generator))

    def _sides(self, space: str) -> list[str]:
        """The sides of a space's map that grow and that a tensor uses."""
        if self.source.spaces[space].size == self.target.spaces[space].size:
            return []
        roles = {"writes": ("writes", "scales"), "reads": ("reads",), "gains": ("gain",)}
        return [side for side, used in roles.items() if any(p.touches(space, *used) for p in self.target.params)]

    def maps(self) -> Maps:
        return Maps({name: self._space(name, space_map) for name, space_map in self.start.items()})

    def _space(self, name: str, space_map: SpaceMap) -> SpaceMap:
        sides = {side: DenseMap(self.matrices[f"{name} {side}"]) for side in self._sides(name)}
        return replace(space_map, **sides, query_null_space=None)

    def layers(self) -> Layers:
        """Every target layer is a mixture of all source layers."""
        sources = range(self.source.stacks[0].layers)
        origins = [LayerOrigin(tuple(Term(j, row[j]) for j in sources)) for row in self.mixture]
        return {self.target.stacks[0].name: tuple(origins)}


class LearnedOptions(MethodOptions):
    start: Literal["fpi", "lemon"] = "fpi"


class Learned(LearnedMethod):
    name = "learned"
    summary = "dense maps and mixed layers, moved by the target's loss"
    Options = LearnedOptions

    def refusals(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return []

    def lossy(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return ["it is learned"]

    def module(self, source: Architecture, target: Architecture, context: GrowthContext) -> Coefficients:
        start = methods.find(context.options.start).maps(source, target, context)
        return Coefficients(source, target, start)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "learned", Learned())


def coefficients(source, target, start: str) -> Coefficients:
    """The module of the method as it starts."""
    options = methods.parse("learned", {"start": start})
    architectures = models.architecture_of(source), models.architecture_of(target)
    return methods.find("learned").module(*architectures, GrowthContext(options.options))


def planned_with(module: Coefficients) -> GrowthPlan:
    return plan_growth(module.source, module.target, methods.parse("learned"), 0.02, module=module)


def test_a_method_that_has_not_been_fitted_is_refused(tmp_path, capsys, monkeypatch):
    """Every command and function that grows by it refuses it in one line, and nobody builds a module to throw it
    away."""
    monkeypatch.setattr(Learned, "module", lambda *_: pytest.fail("a module was built"))
    small = saved(tmp_path / "small", "vit")
    target = target_config_file(tmp_path / "target.json", "vit", **times(2, layers=4))
    complaint = "method 'learned' learns its maps, and has no data to be fitted on"
    growth = ["--source", small, "--target", target, "--method", "learned"]
    code, _, err = lemon(capsys, "expand", *growth, "--out", tmp_path / "large")
    assert code == 2 and complaint in err and err.count("\n") == 1, err
    source, larger = sample("vit"), sample("vit", **times(2, layers=4))
    architectures, options = (models.architecture_of(source), models.architecture_of(larger)), methods.parse("learned")
    for refused in (
        lambda: pipeline.grow(models.build(source), larger, "learned"),
        lambda: build_plan(*architectures, options, 0.02),
    ):
        with pytest.raises(UserError, match=complaint):
            refused()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "target.json"]


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


@pytest.mark.parametrize("start", ["fpi", "lemon"])
@pytest.mark.parametrize("variant, data", TASKS.items(), ids=TASKS)
def test_twenty_steps_of_the_targets_loss_lower_it(variant, data, start):
    source, target = sample(variant), sample(variant, **times(2, layers=4))
    weights = {name: tensor.float() for name, tensor in randomised(source, scale=0.15).items()}
    learned, model, (inputs, labels) = coefficients(source, target, start), models.build(target), data()
    modules = {param.name: param.module for param in learned.target.rows()}
    optimizer, losses = torch.optim.Adam(learned.parameters(), RATE), []
    for step in range(STEPS):
        grown = PlanExecutor(planned_with(learned), torch.float32).tensors(rows_of(weights))
        tensors = {modules[name]: tensor for name, tensor in grown}
        loss = F.cross_entropy(functional_call(model, tensors, kwargs=inputs).logits.flatten(0, -2), labels)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            parameters = dict(learned.named_parameters())
            silent = [name for name, each in parameters.items() if each.grad is None or not each.grad.any()]
            assert not silent, f"no gradient reaches {silent}"
            assert learned.mixture.grad.all()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0], losses
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["bert-pre-ln", "vit", "gpt2", "dinov2", "qwen3", "phi3"])
def test_learned_maps_that_equal_a_known_growth_give_it(variant):
    """Dense maps and coefficients in place of index maps: the same tensors, through the same formula."""
    source, target = sample(variant), sample(variant, **times(2, layers=4))
    weights = randomised(source)
    known, target = planned(source, target, method="fpi")
    learned = coefficients(source, target, "fpi").double()
    with torch.no_grad():
        for name, matrix in learned.matrices.items():
            space, side = name.split()
            matrix.copy_(dense(getattr(learned.start[space], side)))
        learned.mixture.copy_(F.one_hot(torch.arange(4) % 2, 2))
        expected = dict(PlanExecutor(known).tensors(rows_of(weights)))
        for name, tensor in PlanExecutor(planned_with(learned)).tensors(rows_of(weights)):
            assert torch.allclose(tensor, expected[name], atol=1e-12), name


def test_a_learned_plan_is_saved_with_its_matrices(tmp_path):
    """Read back it grows the same tensors, to the bit, and holds no gradient; the JSON names the method and its
    mixture."""
    source, target = sample("vit"), sample("vit", **times(2, layers=4))
    weights, learned = randomised(source), coefficients(source, target, "lemon").double()
    plan = planned_with(learned)
    assert plan_file.save(plan, tmp_path) == [plan_file.PLAN, plan_file.TENSORS]
    again = plan_file.load(tmp_path, plan.source, plan.target, 0.02)
    assert again.options == plan.options and again.lossy == plan.lossy
    expected = dict(PlanExecutor(plan).tensors(rows_of(weights)))
    for name, tensor in PlanExecutor(again).tensors(rows_of(weights)):
        assert not tensor.requires_grad and torch.equal(tensor, expected[name]), name
