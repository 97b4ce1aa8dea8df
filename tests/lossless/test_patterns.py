"""Layers of several kinds: a growth adds whole patterns of them, by every method, and is as exact as it would be of
layers of one kind.

The model is invented: a Llama whose layers attend, by turns, to all tokens and to the last few.
"""

import copy
from dataclasses import replace

import pytest

from pipeline import models
from pipeline.errors import UserError
from pipeline.growth import methods
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.method import LayerOrigin, Term, in_pattern
from pipeline.growth.plan import GrowthPlan, begun_module, plan_growth
from pipeline.models.architecture import Architecture, LayerStack
from tests.helpers.growing import EXACT, difference, randomised, rows_of
from tests.helpers.samples import sample
from tests.helpers.variations import LONG

PERIOD, REST = 3, 1
BLOCKS, MORE = 2, 5
LEMON = [("lemon", {"placement": placement}) for placement in ("even", "top")]
COPYING = [("lemon", {"depth": "copy", "placement": placement}) for placement in ("even", "top", "stack", "last")]
OTHERS = [(name, {}) for name in ("fpi", "aki", "net2net", "stack", "interpolate", "tile", "sparkling", "random")]


def architecture(blocks: int, rest: int = REST, period: int = PERIOD, variant: str = "qwen3") -> Architecture:
    layers = blocks * period + rest
    model = models.architecture_of(sample(variant, layers=layers))
    (stack,) = model.stacks
    return replace(model, stacks=(replace(stack, period=period),))


def planned(
    source: Architecture, target: Architecture, method: str = "lemon", options: dict | None = None
) -> GrowthPlan:
    chosen = methods.parse(method, options or {})
    module = begun_module(source, target, chosen).requires_grad_(False) if methods.is_learned(method) else None
    return plan_growth(source, target, chosen, 0.02, module=module)


def origins(plan: GrowthPlan) -> list[int | None]:
    return [each.origin for each in plan.layers["layers"]]


def new(plan: GrowthPlan) -> list[bool]:
    return [each.new for each in plan.layers["layers"]]


def test_new_layers_are_whole_patterns_behind_the_one_they_come_from():
    plan = planned(architecture(2), architecture(4))
    assert origins(plan) == [0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5, 6]
    assert new(plan) == [False] * 3 + [True] * 3 + [False] * 3 + [True] * 3 + [False]


@pytest.mark.parametrize("method, options", [*LEMON, *COPYING, *OTHERS, ("ligo", {}), ("ligo", {"width_init": "rand"})])
def test_every_layer_has_the_kind_of_its_origin(method, options):
    blocks = 2 * BLOCKS if options.get("placement") == "top" else MORE
    plan = planned(architecture(BLOCKS), architecture(blocks), method, options)
    found = origins(plan)
    assert len(found) == blocks * PERIOD + REST
    for layer, origin in enumerate(plan.layers["layers"]):
        assert {term.layer % PERIOD for term in origin.terms} == {layer % PERIOD}
    assert found[-REST:] == [BLOCKS * PERIOD]
    wholes = [found[start : start + PERIOD] for start in range(0, blocks * PERIOD, PERIOD)]
    assert all(whole == list(range(whole[0], whole[0] + PERIOD)) for whole in wholes)


@pytest.mark.parametrize("method, options", [*LEMON, *COPYING, *OTHERS])
def test_patterns_are_placed_as_layers_of_one_kind_are(method, options):
    blocks = 2 * BLOCKS if options.get("placement") == "top" else MORE
    pattern = planned(architecture(BLOCKS, rest=0), architecture(blocks, rest=0), method, options)
    plain = planned(architecture(BLOCKS, rest=0, period=1), architecture(blocks, rest=0, period=1), method, options)
    firsts = pattern.layers["layers"][::PERIOD]
    assert [each.origin for each in firsts] == [each.origin * PERIOD for each in plain.layers["layers"]]
    assert [each.new for each in firsts] == [each.new for each in plain.layers["layers"]]


def test_mango_starts_its_mixture_of_layers_in_the_pattern():
    source, target = (architecture(blocks, variant="gpt2") for blocks in (2, 3))
    with pytest.raises(UserError, match="no whole multiple"):
        planned(source, target, "mango")
    sizes = {"hidden": 12, "mlp": 24}
    source, target = (
        replace(
            models.architecture_of(sample("gpt2", layers=layers, **sizes)),
            stacks=(LayerStack("layers", layers, period=3),),
        )
        for layers in (7, 10)
    )
    plan = planned(source, target, "mango")
    assert origins(plan) == [0, 1, 2, 3, 4, 5, 0, 1, 2, 6]
    weights = [
        [float(term.coefficient) for term in layer.mixtures["transformer.h.{i}.ln_1.weight"]]
        for layer in plan.layers["layers"]
    ]
    assert [row.index(1.0) for row in weights] == origins(plan) and {sum(row) for row in weights} == {1.0}


@pytest.mark.parametrize("layers, nearest", [(8, "7 or 10"), (9, "7 or 10"), (11, "10 or 13"), (12, "10 or 13")])
@pytest.mark.parametrize("method", ["lemon", "stack", "random", "ligo"])
def test_a_broken_pattern_is_refused_with_the_nearest_numbers(layers, nearest, method):
    source, target = architecture(2), architecture(*divmod(layers, PERIOD))
    with pytest.raises(
        UserError, match=f"a pattern of 3, which a growth from 7 to {layers} would break; choose {nearest}"
    ):
        planned(source, target, method)


def test_a_source_of_less_than_one_pattern_has_none_to_add():
    with pytest.raises(UserError, match="the source has 1 of the 3 layers of one pattern"):
        planned(architecture(0), architecture(1))
    plan = planned(architecture(0), architecture(1), options={"depth": "random"})
    assert [each.continued for each in plan.layers["layers"]] == [None, None, None, 0]
    assert planned(architecture(0), architecture(0)).lossless


def test_source_and_target_have_one_pattern():
    with pytest.raises(UserError, match="of 3 in the source and of 2 in the target"):
        planned(architecture(2), architecture(4, period=2))


@pytest.mark.parametrize("depth", ["zero", "cancel"])
def test_a_new_pattern_adds_nothing(depth):
    """Windows by turns, which a layer of another kind would not have: the function is the source's."""
    types = ["full_attention", "sliding_attention", "sliding_attention"]
    small, large = (_windowed(layers, types, **sizes) for layers, sizes in ((4, {}), (10, {"heads": 6})))
    source, target = (_in_pattern(models.architecture_of(config)) for config in (small, large))
    plan = planned(source, target, options={"depth": depth})
    weights = randomised(small)
    grown = dict(PlanExecutor(plan).tensors(rows_of(weights)))
    large.update(plan.config_change)
    assert plan.lossless and difference(small, weights, large, grown, plan) <= EXACT
    shifted = copy.deepcopy(large)
    shifted.layer_types = large.layer_types[1:] + large.layer_types[:1]
    assert difference(small, weights, shifted, grown, plan) > 1e-3  # the probe is longer than the windows


def _windowed(layers: int, types: list[str], **sizes: int) -> object:
    config = sample("qwen3", layers=layers, positions=LONG, **sizes)
    config.update({"use_sliding_window": True, "sliding_window": 4})
    config.layer_types = [types[layer % len(types)] for layer in range(layers)]
    return config


def _in_pattern(model: Architecture) -> Architecture:
    return replace(model, stacks=tuple(replace(stack, period=PERIOD) for stack in model.stacks))


def test_all_that_a_rule_says_of_layers_goes_by_the_pattern():
    """Mixtures by template, too; what names no layer stays."""
    own = LayerOrigin((Term(1, 0.5),), mixtures={"a": (Term(0), Term(1)), "b": (Term(None),)})
    rule = {(2, 1): (own,)}
    found = in_pattern(lambda *sizes: rule[sizes], LayerStack("layers", 4, period=2), LayerStack("layers", 2, period=2))
    assert [[term.layer for term in each.mixtures["a"]] for each in found] == [[0, 2], [1, 3]]
    assert [each.terms for each in found] == [(Term(2, 0.5),), (Term(3, 0.5),)]
    assert all(each.mixtures["b"] == (Term(None),) for each in found)
