"""Copies learn different things: noise is on, is fresh initialisation as far as nobody sees it, and depends on nothing
but its seed."""

from dataclasses import replace

import pytest
import torch

from pipeline import models
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.plan import GrowthPlan, TensorPlan
from pipeline.growth.verification.probe import probe
from pipeline.growth.verification.symmetry import symmetry
from pipeline.models.streaming import ReadModel
from tests.helpers.growing import ARCHITECTURES, ROTARY, dense, grown, planned, randomised, rows_of, times
from tests.helpers.samples import VARIANTS, sample

LARGER_HEADS = {"hidden": 24, "heads": 3, "mlp": 48}
GROWTHS = [(variant, times(2)) for variant in VARIANTS] + [
    (variant, LARGER_HEADS) for variant in VARIANTS if variant not in ROTARY
]
NAMES = [f"{variant}-{'heads' if sizes is not LARGER_HEADS else 'head size'}" for variant, sizes in GROWTHS]


def measured(source, target, large: dict, plan: GrowthPlan) -> dict[str, float]:
    return symmetry(ReadModel(target, lambda name: large[name].float()), plan, probe(source))[1]


def pooled(plan: GrowthPlan) -> set[str]:
    """The space between two dense layers of a head."""
    inside = {name for name, space in plan.target.spaces.items() if space.kind == "pooled"}
    return inside - set(plan.target.outputs.values())


@pytest.mark.parametrize("variant, sizes", GROWTHS, ids=NAMES)
def test_copies_receive_different_gradients(variant, sizes):
    """Entries of the stream (of branches, where norms end them), queries, keys (those of other heads), values and MLP
    units all separate; without noise none ever does."""
    source, weights = sample(variant), randomised(sample(variant))
    for options in ({}, {"noise": 0.0}, {"method": "fpi"}):
        large, target, plan = grown(weights, source, sample(variant, **sizes), **options)
        found = measured(source, target, large, plan)
        branches = {"branch" if ARCHITECTURES[variant].branch_ends else "embed"}
        keys = {"key"} if sizes is not LARGER_HEADS else set()
        assert set(found) == branches | {"query", "value", "mlp"} | keys | pooled(plan)
        assert (
            all(measure < 1e-6 for measure in found.values())
            if options
            else all(measure > 1e-4 for measure in found.values())
        ), found


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant not in ROTARY])
def test_row_noise_of_keys_separates_queries_inside_a_head(variant):
    """Queries of a larger head see E_Q^T k, so that M with E_Q^T M = 0 is unseen. Without it, in-head copies of a
    query have the same gradient for ever: the noise along its reading axis is no help, since N E = 0."""
    source, weights = sample(variant), randomised(sample(variant))
    plan, target = planned(source, sample(variant, **LARGER_HEADS))
    executor = PlanExecutor(plan)
    for roles, separate in ((("reads", "writes"), True), (("reads",), False)):
        large = {each.target: executor.tensor(_only(each, executor, roles), rows_of(weights)) for each in plan.tensors}
        assert (measured(source, target, large, plan)["query"] > 1e-4) == separate


@pytest.mark.parametrize(
    "sizes",
    [LARGER_HEADS, {"hidden": 30, "heads": 3}, {"hidden": 54, "heads": 6}],
    ids=["whole", "remainder", "more heads"],
)
@pytest.mark.parametrize("variant", ["vit", "gpt2", "dinov2"])
def test_queries_do_not_see_row_noise(variant, sizes):
    """E_Q^T M = 0 in every head, and M is not 0; rows of queries and values have none."""
    source = sample(variant)
    plan, target = planned(source, sample(variant, **sizes))
    grower, weights = PlanExecutor(plan), randomised(source)
    spaces, inside = models.architecture_of(target).spaces, plan.maps["key"].query_null_space
    seen = 0
    for row in plan.tensors:
        param = grower.params[row.target]
        for axis in (axis for axis in row.noise if param.axes[axis].role == "writes"):
            bare, noisy = (grower.tensor(replace(row, noise=noise), rows_of(weights)) for noise in ((), (axis,)))
            parts = (noisy - bare).movedim(axis, 0).split([spaces[name].size for name in param.axes[axis].spaces])
            for name, part in zip(param.axes[axis].spaces, parts, strict=True):
                assert bool(part.abs().max() > 1e-2) == (name == "key")
                assert name != "key" or (dense(inside).T @ part).abs().max() < 1e-14
                seen += name == "key"
    assert seen == target.num_hidden_layers


def _only(tensor_plan: TensorPlan, executor: PlanExecutor, roles: tuple[str, ...]) -> TensorPlan:
    """The plan of a tensor with noise along axes of these roles only."""
    axes = executor.params[tensor_plan.target].axes
    return replace(tensor_plan, noise=tuple(axis for axis in tensor_plan.noise if axes[axis].role in roles))


@pytest.mark.parametrize("variant", VARIANTS)
def test_noise_depends_on_its_seed_and_on_nothing_else(variant):
    """Not on the order of tensors, not on the other tensors."""
    source, target = sample(variant), sample(variant, **times(2, layers=4))
    weights = randomised(source)
    depth = "zero" if ARCHITECTURES[variant].branch_ends else "cancel"
    large, changed, plan = grown(weights, source, target, depth=depth)
    again = PlanExecutor(plan)
    for row in reversed(plan.tensors):
        assert torch.equal(again.tensor(row, rows_of(weights)), large[row.target])
    other, _, _ = grown(weights, source, target, depth=depth, seed=1)
    noisy = {row.target for row in plan.tensors if row.noise}
    assert noisy and {name for name in large if not torch.equal(large[name], other[name])} == noisy
    assert {
        row.template
        for row in models.architecture_of(changed).rows()
        if row.use == "matmul" and row.touches("mlp", "reads")
    } <= {row.template for row in models.architecture_of(changed).rows() if row.name in noisy}


@pytest.mark.parametrize("factor", [2, 3])
def test_noise_is_fresh_initialisation_as_far_as_it_is_free(factor):
    """N = s * (Z - Z E (E^T E)^-1 E^T): its size is that of fresh weights times sqrt(1 - 1/k), it scales with s, and N
    E = 0. No two tensors have the same."""
    source, target = (
        sample("vit", hidden=48, heads=12, mlp=96),
        sample("vit", hidden=48 * factor, heads=12 * factor, mlp=96 * factor),
    )
    weights = randomised(source)
    none, once, thrice = (grown(weights, source, target, noise=noise)[0] for noise in (0.0, 1.0, 3.0))
    plan, _ = planned(source, target)
    grower, firsts = PlanExecutor(plan), []
    for row in plan.tensors:
        noise = once[row.target] - none[row.target]
        firsts += [noise.flatten()[0].item()] if row.noise else []
        assert torch.allclose(thrice[row.target] - none[row.target], 3 * noise, atol=1e-7)
        assert bool(noise.any()) == bool(row.noise)
        for axis in row.noise:
            free = models.initializer_range(target) * (1 - 1 / factor) ** 0.5
            assert noise.std().item() == pytest.approx(free, rel=4 / noise.numel() ** 0.5), row.target
            written = plan.maps[grower.params[row.target].axes[axis].spaces[0]].writes.dense()
            assert (noise.movedim(axis, -1) @ written).abs().max() < 1e-12
    assert len(set(firsts)) == len(firsts) > 10


def test_fan_outs_of_new_layers_are_noise_alone():
    """Depth 'cancel': what a new layer writes adds up to nothing over the copies, and is not nothing."""
    source = sample("vit")
    large, _, plan = grown(randomised(source), source, sample("vit", **times(2, layers=4)), depth="cancel")
    fan_outs = [row for row in plan.tensors if row.note and row.noise]
    assert {row.note for row in fan_outs} == {"new layer: fan-outs of copies cancel"} and len(fan_outs) == 4
    for row in fan_outs:
        tensor = large[row.target]
        half = tensor.shape[1] // 2
        assert tensor.std() > 0.01 and (tensor[:, :half] + tensor[:, half:]).abs().max() < 1e-12
