"""Optimizer state that is kept where the source's entries lie, and zero elsewhere; which entries are new."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from pipeline import models
from pipeline.errors import UserError
from pipeline.growth import new_entries, optimizer_state
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.new_entries import NewEntries
from pipeline.growth.optimizer_state import KeptSlot
from pipeline.growth.plan import GrowthPlan
from pipeline.optim.optimizers import SGD, AdamW, Muon
from pipeline.optim.rewarm import Ramp
from pipeline.records.stage_facts import NEW_ENTRIES
from pipeline.training.entry_rates import EntryRates
from tests.helpers.growing import ROTARY, planned, randomised, rows_of, times
from tests.helpers.samples import IMAGES, VARIANTS, sample

SIZES = {
    "double": times(2, layers=4),
    "odd": {"hidden": 20, "heads": 5, "mlp": 33, "layers": 3},
    "wider heads": {"hidden": 24, "heads": 3, "mlp": 40},
    "rows": {"vocab": 70, "positions": 20},
}


def kept(plan: GrowthPlan, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    executor, going_on, read = PlanExecutor(plan), new_entries.heirs(plan), rows_of(weights)
    found = {}
    for each in plan.tensors:
        param = executor.params[each.target]
        goes_on = param.layer is None or param.layer in going_on[param.stack]
        found[each.target] = KeptSlot(executor, each, read, goes_on).rows()
    return found


def cases():
    for variant in VARIANTS:
        for name, sizes in SIZES.items():
            rows = variant.split()[0] in IMAGES and name == "rows"
            heads = variant in ROTARY and name == "wider heads"
            if not rows and not heads and not (variant == "bert" and name == "odd"):
                yield variant, sizes


@pytest.mark.parametrize("variant, sizes", list(cases()))
def test_every_number_is_kept_once_and_where_it_is_copied_first(variant, sizes):
    """What is not zero are the source's numbers, each once, in its order; new entries are the zeros."""
    source, target = sample(variant), sample(variant, **sizes)
    weights = randomised(source)
    plan, target = planned(source, target, method="fpi")
    added, states = new_entries.of_growth(plan, 7, 7.0), kept(plan, weights)
    taken = set()
    for row in plan.target.rows():
        state, mask = states[row.name], added.mask(row.name, plan.target.shape(row))
        assert torch.equal(state == 0, torch.zeros_like(state, dtype=torch.bool) if mask is None else mask), row.name
        if state.any():
            origin = next(each.origin for each in plan.tensors if each.target == row.name)
            assert torch.equal(state[state != 0], weights[origin].flatten()), row.name
            taken.add(origin)
    assert taken == set(weights)
    numbers = sum(tensor.numel() for tensor in weights.values())
    assert added.count(plan.target) == models.architecture_of(target).parameters - numbers


def test_whole_multiples_keep_the_first_entries():
    source, target = sample("vit"), sample("vit", **times(2, layers=3))
    weights = randomised(source)
    plan, _ = planned(source, target, depth="copy", placement="last")
    for name, state in kept(plan, weights).items():
        small = weights.get(name)
        if small is None:
            assert ".2." in name and not state.any(), name
        else:
            assert torch.equal(state[tuple(slice(0, size) for size in small.shape)], small), name


@pytest.mark.parametrize("depth", ["zero", "copy", "random"])
def test_one_layer_of_several_from_one_goes_on(depth):
    plan, _ = planned(sample("vit", layers=1), sample("vit", layers=3), depth=depth)
    assert new_entries.heirs(plan) == {"layers": {0}}
    added = new_entries.of_growth(plan, 0, None)
    assert all(added.kept[row.name] == () for row in plan.target.rows() if row.layer in (1, 2))
    assert not any(row.name in added.kept for row in plan.target.rows() if row.layer in (0, None))


@pytest.mark.parametrize("all_copies", [False, True])
def test_what_was_new_before_a_growth_is_new_behind_it(all_copies):
    """All copies of a new entry where the state grows, the first one where it is kept; what copies none is not."""
    small, middle, large = (sample("vit", **{**times(n), "layers": n}) for n in (1, 2, 4))
    first, _ = planned(small, middle, method="fpi")
    second, _ = planned(middle, large, method="fpi")
    before = new_entries.of_growth(first, 3, 3.0)
    behind, added = new_entries.carried(before, second, all_copies), new_entries.of_growth(second, 9, 9.0)
    assert (behind.since, behind.counted) == (3, 3.0)
    rule = new_entries.on_all_copies if all_copies else new_entries.on_kept
    executor, going_on = PlanExecutor(second), new_entries.heirs(second)["layers"]
    shapes = {row.name: first.target.shape(row) for row in first.target.rows()}
    for row in second.target.rows():
        each = next(each for each in second.tensors if each.target == row.name)
        origin = before.mask(each.origin, shapes[each.origin])
        new = torch.zeros(shapes[each.origin]) if origin is None else origin.double()
        if row.layer is not None and row.layer not in going_on and not all_copies:
            new = torch.zeros_like(new)
        expected = executor.transform(_Rows(new), row, second.maps, rule, range(second.target.shape(row)[0])) != 0
        found = behind.mask(row.name, second.target.shape(row))
        found = torch.zeros_like(expected) if found is None else found
        later = None if all_copies else added.mask(row.name, found.shape)
        assert torch.equal(found if later is None else found & ~later, expected), row.name


class _Rows:
    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor.double()

    def __call__(self, rows: range) -> torch.Tensor:
        return self.tensor[rows.start : rows.stop]


def test_an_entry_belongs_to_the_last_growth_that_added_it():
    growths = [NewEntries(1, 1.0, {"w": (((0, 2),),)}), NewEntries(5, 5.0, {"w": (((0, 3),),)})]
    found = dict(new_entries.by_growth(growths, "w", (5,)))
    assert found[1].tolist() == [False, False, False, True, True]
    assert found[0].tolist() == [False, False, True, False, False]
    assert list(new_entries.by_growth(growths, "b", (5,))) == []


def test_it_is_the_same_when_a_checkpoint_is_read():
    plan, _ = planned(sample("vit"), sample("vit", **times(2, layers=3)))
    growths = (new_entries.of_growth(plan, 5, 4.0), new_entries.of_growth(plan, 9, None))
    assert new_entries.read(new_entries.written(growths)) == growths
    assert new_entries.read({}) == () and new_entries.written(()) == {}


@pytest.mark.parametrize("content", [{"since": 3}, {"since": 1, "counted": None, "kept": {"w": [[3]]}}, 7, "x"])
def test_content_that_is_none_is_refused(content):
    with pytest.raises(UserError, match=r"its 'lemon_new_entries' are none .*; the file is damaged"):
        new_entries.read({NEW_ENTRIES: [content]})
    with pytest.raises(UserError, match=r"its 'lemon_new_entries' are no list but dict; the file is damaged"):
        new_entries.read({NEW_ENTRIES: {"since": 3}})


@pytest.mark.parametrize(
    "method, sizes, reason",
    [
        ("ligo", times(2), "method 'ligo' mixes units or layers, and none of the source's stay as they are"),
        ("ligo", {"layers": 4}, "method 'ligo' mixes units or layers"),
        ("random", times(2), "method 'random' starts every tensor afresh"),
        ("lemon", {"image": 16}, "method 'lemon' mixes units or layers"),
    ],
)
def test_what_cannot_be_kept_is_refused(method, sizes, reason):
    plan, _ = planned(sample("vit"), sample("vit", **sizes), method=method)
    slots = AdamW().slots
    with pytest.raises(UserError, match=f"optimizer state 'asymmetric' is not possible: {reason}"):
        optimizer_state.require(plan, "asymmetric", slots, [slot.name for slot in slots])
    with pytest.raises(UserError, match="the source holds no exp_avg_sq"):
        optimizer_state.require(plan, "asymmetric", slots, ["exp_avg"])


@pytest.mark.parametrize("own, counted", [(1, 1), (1, 8), (3, 1003), (50, 60)])
def test_first_updates_are_those_of_an_optimizer_that_counts_from_there(own, counted):
    """torch's AdamW, once with the count of the old entries and once with that of the new ones, eps 0."""
    hyper = {"betas": (0.9, 0.999), "eps": 0.0, "weight_decay": 0.0}
    moves = []
    for steps in (own, counted):
        parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
        optimizer = torch.optim.AdamW([parameter], lr=1.0, **hyper)
        moments = {"exp_avg": torch.full((4,), 0.3).double(), "exp_avg_sq": torch.full((4,), 0.2).double()}
        optimizer.state[parameter] = {"step": torch.tensor(steps - 1.0), **moments}
        parameter.grad = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
        optimizer.step()
        moves.append(parameter.detach())
    assert torch.allclose(moves[0], moves[1] * AdamW().first_updates(hyper, own, counted), rtol=1e-12)
    muon = Muon()
    assert muon.first_updates({"use_muon": True}, own, counted) == 1 == SGD().first_updates({}, own, counted)
    assert muon.first_updates({**hyper, "use_muon": False}, own, counted) == AdamW().first_updates(hyper, own, counted)


def test_a_growth_in_between_is_dropped_where_nothing_of_it_is_left():
    plan, _ = planned(sample("vit"), sample("vit", **times(2)))
    nothing = replace(new_entries.of_growth(plan, 0, None), kept={})
    assert new_entries.carried(nothing, plan, False).kept == {}


@pytest.mark.parametrize(
    "kept", [{"nowhere": ()}, {"vit.layernorm.bias": (((0, 13),),)}, {"vit.layernorm.bias": ((), ())}]
)
def test_entries_of_another_model_are_refused(kept):
    architecture = models.architecture_of(sample("vit"))
    with pytest.raises(UserError, match=r"its 'lemon_new_entries' are of another model \('.*'\); the file is damaged"):
        NewEntries(0, None, kept).require_fitting(architecture)


def test_a_folded_layer_scale_leaves_no_state_that_fits():
    plan, _ = planned(sample("dinov2"), sample("dinov2", hidden=20, heads=5, mlp=33))
    slots = AdamW().slots
    assert any(each.fold for each in plan.tensors)
    with pytest.raises(UserError, match="layer scales are multiplied into the weights they scale"):
        optimizer_state.require(plan, "asymmetric", slots, [slot.name for slot in slots])


def test_entries_with_other_counts_are_not_mixed():
    plan, _ = planned(sample("vit"), sample("vit", **times(2)), method="ligo")
    slots = AdamW().slots
    names = [slot.name for slot in slots]
    optimizer_state.require(plan, "grow", slots, names)
    with pytest.raises(UserError, match="mixes entries that an earlier growth has added with older ones"):
        optimizer_state.require(plan, "grow", slots, names, new=True)


@pytest.mark.parametrize("kept", [(), (((0, 1),), ((0, 64),))], ids=["all new", "half new"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_what_gets_no_gradient_is_only_decayed(kept, decay):
    """3,000 steps at 1.3 times the rate: without decay every bit stays, with it what is new loses 1.3 times as much."""
    parameter = torch.nn.Parameter(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)))
    before, parameter.grad = parameter.detach().clone(), torch.zeros(2, 64)
    optimizer = AdamW(weight_decay=decay).build([{"params": [parameter]}], lr=1e-3, fused=True)
    engine = SimpleNamespace(optimizer=optimizer, global_steps=0)
    EntryRates(engine, AdamW(), [NewEntries(-1, -500.0, {"w": kept})], Ramp(1, 1.3), {"w": parameter})
    for _ in range(3000):
        optimizer.step()
    shares = torch.full((2, 64), 1.3) if not kept else torch.tensor([[1.0], [1.3]]).expand(2, 64)
    expected = before * torch.exp(3000 * torch.log1p(-1e-3 * decay * shares.double())).float()
    if decay:
        assert torch.allclose(parameter, expected, rtol=2e-4)
    else:
        assert torch.equal(parameter, before)
