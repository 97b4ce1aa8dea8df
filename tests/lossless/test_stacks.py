"""An architecture with two stacks of layers, of which the second looks at the first, and maps that differ by layer.

No family needs it yet, so it is invented here: an encoder and a decoder with cross-attention, pre-LN, written down as
an `Architecture` and, to judge the growth, once more as plain torch.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.accounting.flops import cost
from pipeline.errors import UserError
from pipeline.growth import methods, plan_file
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.maps import shared
from pipeline.growth.methods.lemon import Lemon
from pipeline.growth.plan import GrowthPlan, build_plan, plan_growth
from pipeline.growth.verification.equivalence import relative_difference
from pipeline.models.architecture import Architecture, Attention, LayerStack, NormEpsilon, ParamSpec, Space, spaces
from pipeline.models.rows import embedding, linear, norm
from tests.helpers.growing import EXACT, rows_of

VOCAB = 17
SELF = Attention("query", "key", "value", "context")
OWN = Attention("own query", "own key", "own value", "own context", query_positions="target", key_positions="target")
CROSS = Attention("cross query", "cross key", "cross value", "cross context", query_positions="target")
SIZES = {"encoder": 2, "decoder": 3, "hidden": 12, "heads": 3, "cross": 2, "head_dim": 4, "mlp": 10}
GROWTHS = {
    "width": {"hidden": 24, "heads": 6, "cross": 4, "mlp": 20},
    "odd width": {"hidden": 20, "heads": 5, "cross": 5, "mlp": 13},
    "one stack deeper": {"decoder": 5},
    "both deeper, wider": {"encoder": 3, "decoder": 4, "hidden": 24, "heads": 4, "cross": 3, "mlp": 17},
    "larger heads": {"head_dim": 10, "hidden": 30},
}


def four(attention: Attention, count: int, head_dim: int) -> tuple[Space, ...]:
    kinds = ("query", "key", "value", "context")
    return tuple(Space(getattr(attention, kind), count * head_dim, kind, head_dim) for kind in kinds)


def branch(layer: str, name: str, attention: Attention, keys: str, stack: str) -> tuple[ParamSpec, ...]:
    params = (
        *norm(f"{layer}{name}.norm", "embed", "normed"),
        *linear(f"{layer}{name}.q", "normed", attention.query),
        *linear(f"{layer}{name}.k", keys, attention.key),
        *linear(f"{layer}{name}.v", keys, attention.value),
        *linear(f"{layer}{name}.o", attention.context, "embed"),
    )
    return tuple(replace(param, stack=stack) for param in params)


def mlp(layer: str, stack: str) -> tuple[ParamSpec, ...]:
    params = (
        *norm(f"{layer}mlp.norm", "embed", "normed"),
        *linear(f"{layer}mlp.up", "normed", "mlp"),
        *linear(f"{layer}mlp.down", "mlp", "embed"),
    )
    return tuple(replace(param, stack=stack) for param in params)


def architecture(**sizes: int) -> Architecture:
    size = {**SIZES, **sizes}
    return Architecture(
        family="encoder-decoder",
        spaces=spaces(
            Space("vocab", VOCAB, "fixed"),
            Space("embed", size["hidden"], "residual"),
            Space("normed", size["hidden"], "normed"),
            *four(SELF, size["heads"], size["head_dim"]),
            *four(OWN, size["heads"], size["head_dim"]),
            *four(CROSS, size["cross"], size["head_dim"]),
            Space("mlp", size["mlp"], "mlp"),
        ),
        stacks=(LayerStack("encoder", size["encoder"], (SELF,)), LayerStack("decoder", size["decoder"], (OWN, CROSS))),
        params=(
            *embedding("words", "vocab", "embed"),
            *branch("encoder.{i}.", "self", SELF, "normed", "encoder"),
            *mlp("encoder.{i}.", "encoder"),
            *norm("memory", "embed", "normed"),
            *branch("decoder.{i}.", "own", OWN, "normed", "decoder"),
            *branch("decoder.{i}.", "cross", CROSS, "normed", "decoder"),
            *mlp("decoder.{i}.", "decoder"),
            *norm("final", "embed", "normed"),
            *linear("head", "normed", "vocab"),
        ),
        epsilon=NormEpsilon(1e-2, "layer_norm_eps"),
    )


class Judge:
    """The model in plain torch."""

    def __init__(self, model: Architecture, weights: dict[str, Tensor], epsilon: float):
        self.model, self.weights, self.epsilon = model, weights, epsilon

    def __call__(self, read: Tensor, written: Tensor) -> Tensor:
        """Logits (n, vocab) behind the tokens `written`, having read the tokens `read`."""
        encoder, decoder = self.model.stacks
        hidden = self.weights["words.weight"][read]
        for layer in range(encoder.layers):
            hidden = self.attend(hidden, f"encoder.{layer}.self", SELF)
            hidden = self.mlp(hidden, f"encoder.{layer}.mlp")
        memory, hidden = self.norm(hidden, "memory"), self.weights["words.weight"][written]
        for layer in range(decoder.layers):
            hidden = self.attend(hidden, f"decoder.{layer}.own", OWN)
            hidden = self.attend(hidden, f"decoder.{layer}.cross", CROSS, memory)
            hidden = self.mlp(hidden, f"decoder.{layer}.mlp")
        return self.linear(self.norm(hidden, "final"), "head")

    def attend(self, hidden: Tensor, name: str, attention: Attention, memory: Tensor | None = None) -> Tensor:
        normed, count = self.norm(hidden, f"{name}.norm"), self.model.spaces[attention.query].count
        keys = normed if memory is None else memory
        query, key, value = (
            self.linear(x, f"{name}.{part}").unflatten(-1, (count, -1)).transpose(0, 1)
            for part, x in (("q", normed), ("k", keys), ("v", keys))
        )
        scores = (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)
        return hidden + self.linear((scores @ value).transpose(0, 1).flatten(1), f"{name}.o")

    def mlp(self, hidden: Tensor, name: str) -> Tensor:
        return hidden + self.linear(
            F.gelu(self.linear(self.norm(hidden, f"{name}.norm"), f"{name}.up")), f"{name}.down"
        )

    def norm(self, x: Tensor, name: str) -> Tensor:
        gain, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, x.shape[-1:], gain, bias, self.epsilon)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])


def random_weights(model: Architecture) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {
        param.name: 0.4 * torch.randn(model.shape(param), generator=generator, dtype=torch.float64)
        + (param.axes[0].role == "gain")
        for param in model.rows()
    }


def difference(plan: GrowthPlan) -> float:
    """The relative difference of the logits, in float64."""
    weights = random_weights(plan.source)
    large = dict(PlanExecutor(plan).tensors(rows_of(weights)))
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(VOCAB, (length,), generator=generator) for length in (7, 5)]
    small = Judge(plan.source, weights, plan.source.epsilon.value)(*tokens)
    epsilon = plan.config_change["layer_norm_eps"]
    return relative_difference(small, Judge(plan.target, large, epsilon)(*tokens))


@pytest.mark.parametrize("depth", ["zero", "cancel"])
@pytest.mark.parametrize("sizes", GROWTHS.values(), ids=GROWTHS)
def test_lemon_is_lossless_in_both_stacks(sizes, depth):
    options = methods.parse("lemon", {"depth": depth if len(sizes) > 1 else "zero"})
    plan = plan_growth(architecture(), architecture(**sizes), options, 0.5)
    assert plan.lossless and difference(plan) <= EXACT


def test_layers_are_planned_stack_by_stack():
    plan = plan_growth(architecture(), architecture(**GROWTHS["both deeper, wider"]), methods.parse(), 0.5)
    origins = {stack: [(each.origin, each.new) for each in layers] for stack, layers in plan.layers.items()}
    assert origins == {
        "encoder": [(0, False), (0, True), (1, False)],
        "decoder": [(0, False), (0, True), (1, False), (2, False)],
    }
    assert plan.sizes["encoder layers"] == (2, 3) and plan.sizes["cross query heads"] == (2, 3)
    assert {each.origin for each in plan.tensors if each.target.startswith("decoder.3.")} <= set(
        random_weights(plan.source)
    )


def test_refusals_and_losses_name_the_stack():
    source = architecture()
    with pytest.raises(UserError, match="placement 'top' at most doubles the encoder layers, 2 to 5 is more"):
        plan_growth(source, architecture(encoder=5), methods.parse("lemon", {"placement": "top"}), 0.5)
    with pytest.raises(UserError, match="decoder layers shrinks from 3 to 2; an expansion only grows"):
        plan_growth(source, architecture(decoder=2), methods.parse(), 0.5)
    with pytest.raises(UserError, match="cross query heads shrinks from 2 to 1"):
        plan_growth(source, architecture(cross=1), methods.parse(), 0.5)
    plan = plan_growth(source, architecture(decoder=4), methods.parse("stack"), 0.5)
    assert plan.lossy == ("decoder layers repeat from 3 to 4",)


class OtherUnits(Lemon):
    """LEMON, but every layer copies other MLP units."""

    name = "other units"

    def maps(self, source, target, context):
        maps, (before, after) = (
            super().maps(source, target, context),
            (each.spaces["mlp"].size for each in (source, target)),
        )
        overrides = {}
        for stack in target.stacks:
            for layer in range(stack.layers):
                first = layer + (stack.name == "decoder")
                index = torch.cat([torch.arange(before), (torch.arange(after - before) + first) % before])
                overrides[stack.name, layer] = {"mlp": shared(index, before)}
        return replace(maps, overrides=overrides)


@pytest.mark.parametrize("sizes", [GROWTHS["odd width"], GROWTHS["both deeper, wider"]], ids=["wider", "deeper"])
def test_maps_may_differ_from_layer_to_layer(sizes, monkeypatch, tmp_path):
    """Lossless, other than LEMON's in each layer, the same in windows and after the plan was saved."""
    monkeypatch.setitem(methods.METHODS, OtherUnits.name, OtherUnits())
    plan = plan_growth(architecture(), architecture(**sizes), methods.parse(OtherUnits.name), 0.5)
    assert plan.lossless and difference(plan) <= EXACT
    weights = random_weights(plan.source)
    large = dict(PlanExecutor(plan).tensors(rows_of(weights)))
    lemon = dict(PlanExecutor(build_plan(plan.source, plan.target, methods.parse(), 0.5)).tensors(rows_of(weights)))
    ups = [name for name in large if name.endswith("mlp.up.bias")]
    same = {name for name in ups if torch.equal(large[name], lemon[name])}
    assert same == {"encoder.0.mlp.up.bias"}
    plan_file.save(plan, tmp_path)
    again = PlanExecutor(plan_file.load(tmp_path, plan.source, plan.target, 0.0))
    for tensor_plan in again.plan.tensors:
        height = tensor_plan.shape[0]
        windows = [range(begin, min(begin + 3, height)) for begin in range(0, height, 3)]
        parts = [again.tensor(tensor_plan, rows_of(weights), rows) for rows in windows]
        assert torch.equal(torch.cat(parts), large[tensor_plan.target]), tensor_plan.target


def test_the_judge_sees_a_wrong_map():
    """Reading by another layer's choice is no growth."""
    plan = plan_growth(architecture(), architecture(**GROWTHS["odd width"]), methods.parse(), 0.5)
    units = shared(torch.cat([torch.arange(10), torch.tensor([3, 3, 3])]), 10)
    wrong = replace(plan.maps["mlp"], reads=units.reads)
    broken = replace(plan.maps, overrides={("decoder", 1): {"mlp": wrong}})
    assert difference(plan) <= EXACT < 1e-3 < difference(replace(plan, maps=broken))


def test_attention_is_counted_by_what_it_looks_at():
    """4 * queries * keys * width for each layer and attention: the decoder's queries against the encoder's keys."""
    model, positions = architecture(), {"token": 7, "target": 5}
    none = replace(model, stacks=tuple(replace(stack, attentions=()) for stack in model.stacks))
    attention = cost(model, positions).forward - cost(none, positions).forward
    assert attention == 4 * (2 * 7 * 7 * 12 + 3 * 5 * 5 * 12 + 3 * 5 * 7 * 8)
