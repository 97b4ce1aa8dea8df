"""A growth computes exactly the same function: float64, randomised weights, every family and head, all sizes the rules
allow.

Where the rules forbid a growth, the refusal is demanded; which is which follows from the architectures, never from what
comes.
"""

import copy

import pytest
import torch

from pipeline import models
from pipeline.config.model_sizes import ModelSizes
from pipeline.errors import UserError
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.verification.equivalence import verify
from pipeline.models.architecture import Architecture
from tests.helpers.growing import (
    ARCHITECTURES,
    EXACT,
    GROUPED,
    POST_NORM,
    ROTARY,
    WORDS,
    chained,
    difference,
    grown,
    planned,
    randomised,
    rows_of,
    runnable,
    times,
)
from tests.helpers.rotation import rotated
from tests.helpers.samples import IMAGES, SMALL, VARIANTS, sample

WIDTHS = {
    "double": times(2),
    "triple": times(3),
    "odd width": {"hidden": 20, "heads": 5, "mlp": 33},
    "odd above double": {"hidden": 28, "heads": 7, "mlp": 51},
    "three heads to four": {"hidden": 16, "heads": 4},
    "mlp only": {"mlp": 27},
    "nothing": {},
}
DEPTHS = {
    "one layer more": {"layers": 3},
    "layers doubled": {"layers": 4},
    "two layers to five": {"layers": 5},
    "everything": {"layers": 4, "hidden": 32, "heads": 8, "mlp": 47},
    "everything by whole multiples": times(2, layers=3),
    "everything twice and more": times(3, layers=5),
}
HEAD_SIZES = {
    "4 to 8": {"hidden": 24, "heads": 3},
    "4 to 9": {"hidden": 27, "heads": 3},
    "4 to 10": {"hidden": 30, "heads": 3},
    "4 to 6, four heads": {"hidden": 24, "heads": 4},
    "4 to 9, six heads": {"hidden": 54, "heads": 6, "mlp": 70},
    "4 to 12": {"hidden": 36, "heads": 3, "layers": 3},
}
WAYS = [("zero", "even"), ("cancel", "even"), ("cancel", "top")]
GROUPS = [((4, 2), to) for to in ((8, 4), (8, 2), (6, 3), (8, 8), (6, 2), (4, 4))] + [
    ((6, 2), (6, 6)),
    ((6, 3), (10, 5)),
]
"""(heads, groups) -> (heads, groups). (6, 2) to (6, 6) reorders the heads at equal width."""


def forbidden(source: Architecture, target: Architecture, depth: str = "zero", placement: str = "even") -> str:
    """The refusal that the rules demand; empty when there is none."""
    before, after = source.residual.size, target.residual.size
    if after % before and any(space.kind == "inner" for space in target.spaces.values()):
        return f"a dense-activation-norm head cannot grow losslessly from {before} to {after}"
    if after % before and target.post_norm:
        return f"post-LN cannot grow losslessly from {before} to {after}"
    if after % before and target.norm_writes_stream:
        return f"a norm behind the embedding writes the residual stream, which cannot .* from {before} to {after}"
    if after % before and target.epsilon.key is None:
        return (
            f"the norms' epsilon is a constant .* a width from {before} to {after} needs another one; choose a multiple"
        )
    layers = source.stacks[0].layers, target.stacks[0].layers
    if placement == "top" and layers[1] > 2 * layers[0]:
        return f"placement 'top' at most doubles the layers, {layers[0]} to {layers[1]} is more"
    if depth == "cancel" and layers[1] > layers[0] and target.branch_ends:
        return "a norm at their end would divide that 0 by the root of its epsilon; use depth 'zero'"
    read = {
        name
        for param in target.params
        if param.layered and param.touches(target.residual.name, "writes")
        for axis in param.axes
        if axis.role == "reads"
        for name in axis.spaces
    }
    free = any(target.spaces[name].size > source.spaces[name].size for name in read)
    return (
        "depth 'cancel' needs a tensor with a free part"
        if depth == "cancel" and layers[1] > layers[0] and not free
        else ""
    )


def check(variant: str, small: dict, large: dict, **options) -> None:
    """Lossless to EXACT, or refused as the rules say. Post-LN depth is exact up to O(eps), so it is tried at a tiny
    one."""
    moves = variant in POST_NORM and large.get("layers", 0) > SMALL["layers"]
    source, target = (sample(variant, eps=1e-12 if moves else 1e-2, **sizes) for sizes in (small, large))
    weights = randomised(source)
    if reason := forbidden(models.architecture_of(source), models.architecture_of(target), **options):
        with pytest.raises(UserError, match=reason):
            grown(weights, source, target, **options)
        return
    tensors, target, plan = grown(weights, source, target, **options)
    assert plan.lossless and plan.moves_norm_affines == moves
    assert difference(source, weights, target, tensors, plan) <= EXACT


@rotated(one_in=2, of=("variant", "sizes"), alike=lambda variant, sizes: variant)
@pytest.mark.parametrize("sizes", WIDTHS.values(), ids=WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_width_is_lossless(variant, sizes):
    check(variant, {}, sizes)


@rotated(
    one_in=3,
    of=("variant", "sizes", "depth", "placement"),
    alike=lambda variant, sizes, depth, placement: (variant, depth),
)
@pytest.mark.parametrize("depth, placement", WAYS, ids=map("-".join, WAYS))
@pytest.mark.parametrize("sizes", DEPTHS.values(), ids=DEPTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_depth_is_lossless(variant, sizes, depth, placement):
    check(variant, {}, sizes, depth=depth, placement=placement)


@pytest.mark.parametrize("sizes", HEAD_SIZES.values(), ids=HEAD_SIZES)
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in ROTARY])
def test_larger_heads_are_lossless(variant, sizes):
    check(variant, {}, sizes)


@pytest.mark.parametrize("sizes", [{"head_dim": 9}, {"head_dim": 6, "hidden": 20, "heads": 5}], ids=str)
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant.split()[0] in IMAGES])
def test_heads_larger_than_their_share_of_the_width_are_lossless(variant, sizes):
    """As the config's `head_dim` says."""
    check(variant, {}, sizes)
    check(variant, {"head_dim": 5}, sizes)


@rotated(one_in=2, of=("variant", "small", "large"), alike=lambda variant, small, large: variant)
@pytest.mark.parametrize("small, large", GROUPS, ids=str)
@pytest.mark.parametrize("variant", GROUPED)
def test_groups_of_keys_and_values_are_lossless(variant, small, large):
    """At a width that all of them divide, which stays or grows to an odd multiple of a head."""
    for hidden in (24, 24 * large[0] // 4) if 24 % large[0] == 0 else (5 * large[0],):
        check(
            variant,
            {"hidden": 24, "heads": small[0], "kv_heads": small[1]},
            {"hidden": hidden, "heads": large[0], "kv_heads": large[1]},
        )


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_chain_of_two_growths_is_lossless(variant):
    """Where the width must be a multiple, by whole multiples; the others at any size."""
    whole = bool(forbidden(ARCHITECTURES[variant], models.architecture_of(sample(variant, hidden=20, heads=5))))
    odd = {"hidden": 20, "heads": 5, "layers": 3}, {"hidden": 28, "heads": 7, "layers": 5, "mlp": 60}
    steps = (times(2, layers=3), times(4, layers=5)) if whole else odd
    configs = [sample(variant, eps=1e-12 if variant in POST_NORM else 1e-2, **sizes) for sizes in ({}, *steps)]
    weights = small = randomised(configs[0])
    plans = []
    for number, way in enumerate(("zero", "zero" if ARCHITECTURES[variant].branch_ends else "cancel")):
        weights, configs[number + 1], plan = grown(weights, configs[number], configs[number + 1], depth=way)
        plans.append(plan)
    assert chained(configs, plans, small, weights) <= EXACT


@pytest.mark.parametrize("more", [{}, times(2, layers=3)], ids=["alone", "with everything"])
@pytest.mark.parametrize("variant", WORDS)
def test_vocabulary_grows(variant, more):
    """Old logits stay; new biases are 0, new rows fresh; what the new logits do to the softmax is measured."""
    eps = 1e-12 if variant in POST_NORM else 1e-2
    source, target = sample(variant, eps=eps), sample(variant, eps=eps, vocab=70, **more)
    weights = randomised(source)
    large, target, plan = grown(weights, source, target)
    assert difference(source, weights, target, large, plan) <= EXACT
    touched = [row for row in models.architecture_of(target).rows() if any("vocab" in axis.spaces for axis in row.axes)]
    assert touched
    for row in touched:
        new = large[row.name][61:]
        if row.use == "add":
            assert not new.any() and large[row.name][:61].all()
        else:
            std = row.std * models.initializer_range(target)
            assert new.all() and new.std().item() == pytest.approx(std, rel=0.25)
    found = verify(runnable(source, weights), runnable(target, large), plan)
    assert found.lossless, str(found)
    assert (found.loss is None) == ("vocab" not in ARCHITECTURES[variant].outputs.values())
    assert found.loss is None or found.loss[0] != found.loss[1]


@pytest.mark.parametrize("variant", [variant for variant in WORDS if "positions" in ARCHITECTURES[variant].spaces])
def test_number_of_positions_grows(variant):
    source, target = sample(variant), sample(variant, positions=20, **times(2))
    weights = randomised(source)
    large, target, plan = grown(weights, source, target)
    assert difference(source, weights, target, large, plan) <= EXACT
    name = next(row.name for row in models.architecture_of(source).rows() if row.touches("positions", "reads"))
    known = len(weights[name])
    assert torch.equal(large[name][:known], weights[name].repeat(1, 2)) and len(large[name]) == known + 6
    assert large[name][known:].std().item() == pytest.approx(models.initializer_range(target), rel=0.25)


@pytest.mark.parametrize("placement", ["even", "top"])
@pytest.mark.parametrize("layers", [3, 4])
@pytest.mark.parametrize("variant", [variant for variant in POST_NORM if ARCHITECTURES[variant].epsilon.key])
def test_post_norm_depth_is_exact_up_to_its_epsilon(variant, layers, placement):
    """The difference is proportional to eps, of its order, and measured as the tolerance. Weights that float32 holds,
    and depth only, so that nothing is rounded on the way."""
    found = {}
    for eps in (1e-12, 1e-5, 1e-3):
        source = sample(variant, eps=eps)
        weights = {name: tensor.float().double() for name, tensor in randomised(source).items()}
        large, target, plan = grown(weights, source, sample(variant, eps=eps, layers=layers), placement=placement)
        assert plan.moves_norm_affines and plan.lossless
        found[eps] = verify(runnable(source, weights), runnable(target, large), plan)
        assert found[eps].lossless and found[eps].float64 <= EXACT + found[eps].tolerance
        assert found[eps].tolerance <= 10 * eps
    assert found[1e-12].float64 <= EXACT < 1e-5 < found[1e-3].float64
    assert found[1e-3].tolerance / found[1e-5].tolerance == pytest.approx(100, rel=0.1)


@pytest.mark.parametrize("variant", POST_NORM)
def test_the_tolerance_of_post_norm_depth_covers_epsilon_alone(variant):
    """A growth that is wrong by something else does not pass, however large the epsilon."""
    source = sample(variant, eps=1e-3)
    weights = randomised(source)
    large, target, plan = grown(weights, source, sample(variant, eps=1e-3, layers=4))
    name = next(
        row.name for row in models.architecture_of(target).rows() if row.layer == 1 and row.touches("mlp", "writes")
    )
    large[name] = large[name] + 0.01  # of a new layer, whose inner weights do not matter
    assert verify(runnable(source, weights), runnable(target, large), plan).lossless
    name = name.replace(".1.", ".0.")
    large[name] = large[name] + 0.01
    assert not verify(runnable(source, weights), runnable(target, large), plan).lossless


@pytest.mark.parametrize("variant", POST_NORM)
def test_post_norm_layers_that_are_not_doubled_stay_untouched(variant):
    source, target = sample(variant, layers=3), sample(variant, layers=4)
    weights = randomised(source)
    large, _, plan = grown(weights, source, target, placement="top")
    layers = plan.layers["layers"]
    assert [layer.origin for layer in layers] == [0, 1, 2, 2]
    assert [layer.new for layer in layers] == [False, False, False, True]
    rows = {row.name: row for row in models.architecture_of(source).rows() if row.layer != 2}
    assert {row.layer for row in rows.values()} == {None, 0, 1}
    assert all(torch.equal(large[name], weights[name]) for name in rows)


def test_the_old_epsilon_is_not_lossless():
    source, target = sample("bert-pre-ln"), sample("bert-pre-ln", **WIDTHS["odd width"])
    small = randomised(source)
    large, changed, plan = grown(small, source, target)
    assert changed.layer_norm_eps == pytest.approx(1e-2 * 12 / 20)
    assert difference(source, small, changed, large, plan) <= EXACT
    changed = copy.deepcopy(changed)
    changed.layer_norm_eps = source.layer_norm_eps
    assert difference(source, small, changed, large, plan) > 1e-6


PAPER = [((6, 384, 6), (12, 768, 12)), ((6, 512, 8), (12, 768, 12))]
FACTS = {
    "bert-pre-ln": {"kind": "text", "vocab_size": 4096, "block": 128, "scored": 19},
    "vit": {"kind": "images", "size": 224, "channels": 3, "class_names": [str(i) for i in range(100)]},
}


@rotated(one_in=4, of=("name", "small", "large"))
@pytest.mark.parametrize("small, large", PAPER, ids=["384", "512"])
@pytest.mark.parametrize("name", FACTS)
def test_published_pairs_pass_both_gates(name, small, large):
    """Stored in float32, the paper's pairs stay within the gates of a published result, at weights of the scale that
    training leaves."""
    patch = 16 if name == "vit" else None
    source, target = (
        models.family(name).configure(ModelSizes(family=name, layers=n, hidden=d, heads=h, patch=patch), FACTS[name])
        for n, d, h in (small, large)
    )
    weights = {row: tensor.float() for row, tensor in randomised(source, seed=3, scale=0.05).items()}
    plan, target = planned(source, target, depth="cancel")
    stored = {name: tensor.float() for name, tensor in PlanExecutor(plan).tensors(rows_of(weights))}
    found = verify(runnable(source, weights), runnable(target, stored), plan, samples=1)
    assert found.lossless, str(found)
    assert min(found.symmetry.values()) > 1e-4
