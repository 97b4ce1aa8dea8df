"""A new method, written from nothing: MLP units are copied in the order of how strongly they answer to data.

This is what adding a method takes: one class, and a line in the registry (here for the time of a test). The plan owns
the maps that the method chose, so that all that follows (saving, growing, verifying) knows nothing of the method.
"""

import json

import pytest
import torch
from pydantic import Field
from torch import Tensor

from pipeline import models
from pipeline.checkpoints import CheckpointLayout
from pipeline.errors import UserError
from pipeline.expansion import compare, expand, planning
from pipeline.growth import conditions, methods, plan_file
from pipeline.growth.activations import ProbedSource
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.maps import IndexMap, Maps, SpaceMap, circular, same, shared
from pipeline.growth.method import GrowthContext, LayerOrigin, Method, MethodOptions, Term
from pipeline.growth.plan import plan_growth, require_possible
from pipeline.growth.verification.equivalence import verify
from pipeline.growth.verification.probe import cast, fitted, probe
from pipeline.models.architecture import Architecture
from tests.helpers.growing import EXACT, difference, randomised, rows_of, runnable
from tests.helpers.samples import sample

VARIANTS = ["bert-pre-ln", "vit", "gpt2", "llama"]
WIDER, UNITS = {"mlp": 33}, 20


class StrongestOptions(MethodOptions):
    noise: float = Field(1.0, ge=0, description="scale of the symmetry-breaking noise")


class Strongest(Method):
    """Every layer copies the MLP units of its own that have the largest mean |activation| on a probe."""

    name = "strongest"
    summary = "wider MLPs: the units with the largest activations are copied"
    Options = StrongestOptions
    needs_source = True

    def refusals(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        before, after = source.sizes(), target.sizes()
        others = [f"{name} grows" for name in after if name != "mlp" and after[name] != before[name]]
        return conditions.impossible(source, target) or others

    def lossy(self, source: Architecture, target: Architecture, options: MethodOptions) -> list[str]:
        return []

    def maps(self, source: Architecture, target: Architecture, context: GrowthContext) -> Maps:
        spaces = {
            name: circular(source.spaces[name].size, space.size) if name == "mlp" else same(space.size)
            for name, space in target.spaces.items()
        }
        overrides = {
            (stack.name, layer): {"mlp": self._units(context, stack.name, layer, target.spaces["mlp"].size)}
            for stack in target.stacks
            for layer in range(stack.layers)
        }
        return Maps(spaces, overrides)

    def _units(self, context: GrowthContext, stack: str, layer: int, after: int) -> SpaceMap:
        """All units, then again from the strongest on; readers share among the copies, so that nothing is lost."""
        order = context.source.mean_magnitude("mlp", stack, layer).argsort(descending=True)
        more = torch.arange(after - len(order)) % len(order)
        return shared(torch.cat([torch.arange(len(order)), order[more]]), len(order))

    def stack_layers(self, source: int, target: int, options: MethodOptions) -> tuple[LayerOrigin, ...]:
        return tuple(LayerOrigin((Term(layer),)) for layer in range(source))

    def noise(self, options: MethodOptions) -> float:
        return options.noise


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "strongest", Strongest())


def prepared(variant: str):
    """(source config, target config, weights, the source as a method sees it, its architectures)."""
    source, target = sample(variant), sample(variant, **WIDER)
    weights = randomised(source)
    architectures = models.architecture_of(source), models.architecture_of(target)
    return source, target, weights, ProbedSource(source, weights.__getitem__), architectures


@pytest.mark.parametrize("variant", VARIANTS)
def test_planned_saved_loaded_executed_and_verified(variant, tmp_path):
    source, target, weights, model, architectures = prepared(variant)
    plan = plan_growth(
        *architectures, methods.parse("strongest", {"noise": 2.0}), models.initializer_range(target), model
    )
    plan_file.save(plan, tmp_path)
    again = plan_file.load(tmp_path, *architectures, 0.0)
    assert again.options == plan.options and again.init_std == models.initializer_range(target) and again.lossless
    large = dict(PlanExecutor(again).tensors(rows_of(weights)))
    assert all(torch.equal(large[name], tensor) for name, tensor in PlanExecutor(plan).tensors(rows_of(weights)))
    assert difference(source, weights, target, large, again) <= EXACT
    verification = verify(runnable(source, weights), runnable(target, large), again)
    assert verification.lossless and verification.symmetry["mlp"] > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_copies_its_own_strongest_units(variant):
    """The statistics are those of the model that `transformers` runs; two layers differ in what they copy."""
    _, target, weights, model, architectures = prepared(variant)
    plan = plan_growth(*architectures, methods.parse("strongest"), models.initializer_range(target), model)
    copied = [plan.maps.at("mlp", "layers", layer).writes.index[UNITS:] for layer in (0, 1)]
    assert not torch.equal(*copied)
    large = dict(PlanExecutor(plan).tensors(rows_of(weights)))
    for param in (param for param in architectures[1].rows() if param.touches("mlp", "writes")):
        axis = next(number for number, label in enumerate(param.axes) if "mlp" in label.spaces)
        new = large[param.name].narrow(axis, UNITS, 13)
        assert torch.equal(new, weights[param.name].index_select(axis, copied[param.layer]))
        magnitude = model.mean_magnitude("mlp", "layers", param.layer)
        assert magnitude[copied[param.layer]].min() >= magnitude.sort().values[UNITS - 13]


def test_statistics_are_means_of_absolute_activations():
    """Of the input of the MLP's last matrix, by a hook of one's own; a padded token does not count."""
    source, _, weights, model, _ = prepared("bert-pre-ln")
    built = cast(models.fill(models.build(source), weights.__getitem__).eval(), torch.float64)
    inputs, seen = probe(source, 0, 8), []
    last = dict(built.named_modules())["bert.encoder.layer.1.output.dense"]
    last.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    built(**fitted(inputs, built))
    assert not inputs["attention_mask"].all()
    expected: Tensor = seen[0][inputs["attention_mask"].bool()].abs().mean(0)
    assert torch.allclose(model.mean_magnitude("mlp", "layers", 1), expected, rtol=1e-10)


def test_it_is_asked_whether_before_there_is_a_source_and_how_after():
    _, target, _, _, architectures = prepared("vit")
    options = methods.parse("strongest")
    require_possible(*architectures, options)
    with pytest.raises(UserError, match="decides by the source's weights, and there are none to read yet"):
        plan_growth(*architectures, options, models.initializer_range(target))
    deeper = models.architecture_of(sample("vit", layers=3))
    with pytest.raises(UserError, match="method 'strongest' cannot grow this model: layers grows"):
        require_possible(architectures[0], deeper, options)


def test_a_plan_can_be_read_where_its_method_is_not_known(tmp_path, monkeypatch):
    _, target, weights, model, architectures = prepared("vit")
    plan = plan_growth(*architectures, methods.parse("strongest"), models.initializer_range(target), model)
    plan_file.save(plan, tmp_path)
    monkeypatch.delitem(methods.METHODS, "strongest")
    large = dict(PlanExecutor(plan_file.load(tmp_path, *architectures, 0.0)).tensors(rows_of(weights)))
    assert all(torch.equal(large[name], tensor) for name, tensor in PlanExecutor(plan).tensors(rows_of(weights)))


def test_from_checkpoint_to_checkpoint(tmp_path, monkeypatch):
    """Expanded by the same code as any other method; the result is compared by what its plan says, without the
    method."""
    source, target, weights, *_ = prepared("vit")
    small = models.fill(models.build(source), lambda name: weights[name].float())
    small.save_pretrained(tmp_path / "small")
    layout = CheckpointLayout("huggingface", dtype="bfloat16")
    expansion = planning.plan_expansion(tmp_path / "small", target, methods.parse("strongest"), layout)
    assert expand.execute_expansion(expansion, tmp_path / "large").lossless
    monkeypatch.delitem(methods.METHODS, "strongest")
    found = compare.compare(tmp_path / "small", tmp_path / "large")
    assert found.lossless and found.verification.stored > 1e-5 and not found.rounding
    assert found.plan.options.method == "strongest"


def test_maps_of_many_blocks_are_tensors_and_others_are_words(tmp_path, monkeypatch):
    _, target, _, model, architectures = prepared("vit")
    plan = plan_growth(*architectures, methods.parse("strongest"), models.initializer_range(target), model)
    assert plan_file.save(plan, tmp_path) == [plan_file.PLAN]
    mlp = json.loads((tmp_path / plan_file.PLAN).read_text())["maps"]["spaces"]["mlp"]["writes"]
    assert mlp == {"source": UNITS, "blocks": ["20 from 0", "13 from 0"]}
    monkeypatch.setattr(plan_file, "MOST_WORDS", 2)
    assert plan_file.save(plan, tmp_path) == [plan_file.PLAN, plan_file.TENSORS]
    again = plan_file.load(tmp_path, *architectures, 0.0)
    for layer in (0, 1):
        one, other = (each.maps.at("mlp", "layers", layer).reads for each in (plan, again))
        assert isinstance(other, IndexMap)
        assert torch.equal(one.index, other.index) and torch.equal(one.weight, other.weight)
    (tmp_path / plan_file.TENSORS).unlink()
    with pytest.raises(UserError, match=r"plan.json: its tensors in .*plan.safetensors cannot be read"):
        plan_file.load(tmp_path, *architectures, 0.0)
