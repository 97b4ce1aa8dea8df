"""A tensor grown in windows of rows is, to the bit, the tensor grown whole: what a rank or a process asks for changes
nothing."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.checkpoints.tensors import GrownTensor
from pipeline.growth import initialization, methods
from pipeline.growth.execute import PlanExecutor
from pipeline.growth.methods import METHODS
from pipeline.growth.optimizer_state import GrownSlot, refusals
from pipeline.growth.plan import TensorPlan
from pipeline.optim.optimizers import Slot
from tests.helpers.growing import ARCHITECTURES, planned, randomised, rows_of
from tests.helpers.rotation import rotated
from tests.helpers.samples import IMAGES, VARIANTS, sample

SLOTS = (Slot("exp_avg", 1), Slot("exp_avg_sq", 2))
LARGE = {"hidden": 28, "heads": 7, "mlp": 45, "layers": 4}
"""No size is a multiple."""
WHOLE = {"hidden": 24, "heads": 6, "mlp": 40, "layers": 4}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Tiny tensors, drawn in many blocks."""
    monkeypatch.setattr(initialization, "BLOCK", 64)


def grower(variant: str, large: dict, method: str = methods.DEFAULT, **options) -> tuple[PlanExecutor, dict]:
    """In float32, as checkpoints are grown."""
    source, target = sample(variant), sample(variant, **large)
    plan, _ = planned(source, target, method, **options)
    return PlanExecutor(plan, torch.float32), {name: tensor.float() for name, tensor in randomised(source).items()}


def sizes(variant: str) -> dict:
    """The largest growth that LEMON does losslessly."""
    architecture = ARCHITECTURES[variant]
    inner = any(space.kind == "inner" for space in architecture.spaces.values())
    whole = inner or architecture.norm_writes_stream or architecture.epsilon.key is None
    return {**(WHOLE if whole else LARGE), **({} if variant.split()[0] in IMAGES else {"vocab": 80})}


def in_windows(row: TensorPlan, make, height: int, first: int = 0) -> torch.Tensor:
    """The whole, in windows of `height` rows behind the first window, which is smaller."""
    edges = sorted({0, *range(first, row.shape[0], height), row.shape[0]})
    return torch.cat([make(range(*window)) for window in pairwise(edges)])


def same(row: TensorPlan, make) -> bool:
    """Two tilings, so that every row lies in two different windows; and rows alone, at the ends and in the middle."""
    whole, rows = make(range(row.shape[0])), row.shape[0]
    return (
        tuple(whole.shape) == row.shape
        and all(torch.equal(whole, in_windows(row, make, 7, first)) for first in (0, 3))
        and all(torch.equal(whole[r : r + 1], make(range(r, r + 1))) for r in {0, rows // 2, rows - 1})
    )


@rotated(one_in=2, of=("variant", "depth"), alike=lambda variant, depth: variant)
@pytest.mark.parametrize("depth", ["zero", "cancel"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_weights(variant, depth):
    depth = "zero" if ARCHITECTURES[variant].branch_ends else depth
    growth, weights = grower(variant, sizes(variant), depth=depth)
    assert not [
        row.target
        for row in growth.plan.tensors
        if not same(row, lambda rows, row=row: growth.tensor(row, rows_of(weights), rows))
    ]


@rotated(one_in=2, of=("variant", "method"), alike=lambda variant, method: method)
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"lemon", "mango"}))
@pytest.mark.parametrize("variant", ["bert", "vit", "gpt2", "qwen3"])
def test_other_methods(variant, method):
    growth, weights = grower(variant, {"layers": 4} if method in ("stack", "interpolate") else WHOLE, method=method)
    assert not [
        row.target
        for row in growth.plan.tensors
        if not same(row, lambda rows, row=row: growth.tensor(row, rows_of(weights), rows))
    ]


@rotated(one_in=2, of=("variant", "slot"), alike=lambda variant, slot: variant)
@pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: slot.name)
@pytest.mark.parametrize("variant", VARIANTS)
def test_moments(variant, slot):
    growth, weights = grower(variant, sizes(variant))
    if refusals(growth.plan, SLOTS, [slot.name for slot in SLOTS]):
        growth, weights = grower(variant, WHOLE)
    squares = {name: tensor.square() for name, tensor in weights.items()}
    assert not [
        row.target for row in growth.plan.tensors if not same(row, GrownSlot(growth, row, slot, rows_of(squares)).rows)
    ]


@pytest.mark.parametrize("patch", [4, 6])
def test_interpolated_tables(patch):
    growth, weights = grower("vit", {**LARGE, "image": 3 * patch, "patch": patch})
    assert not [
        row.target
        for row in growth.plan.tensors
        if not same(row, lambda rows, row=row: growth.tensor(row, rows_of(weights), rows))
    ]


@pytest.mark.parametrize("slot", [None, *SLOTS], ids=["weights", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("variant", ["bert-pre-ln", "gpt2", "llama"])
def test_a_window_reads_what_it_needs(variant, slot):
    """All windows together read each source row about as often as it is copied, and a mean of all rows; nothing for
    rows without a past, apart from their mean, which is taken once."""
    growth, weights = grower(variant, {**WHOLE, "vocab": 6000})
    read, rows = [], rows_of(weights)

    def counted(name: str, requested: range) -> torch.Tensor:
        read.append((name, requested))
        return rows(name, requested)

    for row in (row for row in growth.plan.tensors if len(row.shape) == 2 and row.terms):
        read.clear()
        in_windows(
            row,
            GrownSlot(growth, row, slot, counted).rows if slot else lambda w, row=row: growth.tensor(row, counted, w),
            7,
        )
        source = weights[row.source_name(row.terms[0])].shape[0]
        assert sum(len(requested) for _, requested in read) <= 4 * row.shape[0] + source, row.target
        assert row.shape[0] < 1000 or sum(len(requested) for _, requested in read) <= 2 * source, row.target


def test_blocks_differ(monkeypatch):
    """Every block has its own numbers, of the same spread; the first has those of a tensor that is one block."""
    drawn = initialization.normal((100, 16), torch.arange(100), 0.5, 0)
    blocks = drawn.split(4)
    assert all(not torch.equal(one, other) for one, other in pairwise(blocks)) and 0.45 < drawn.std() < 0.55
    assert torch.equal(initialization.normal((100, 16), torch.tensor([2, 5, 50]), 0.5, 0), drawn[[2, 5, 50]])
    monkeypatch.setattr(initialization, "BLOCK", 1 << 20)
    assert torch.equal(initialization.normal((4, 16), torch.arange(4), 0.5, 0), blocks[0])


def test_a_rank_draws_no_more_than_its_share(monkeypatch):
    """Half of a matrix costs half of its noise, and a block at most."""
    growth, weights = grower("bert-pre-ln", LARGE)
    row, drawn, normal = (
        next(row for row in growth.plan.tensors if row.noise and len(row.shape) == 2),
        [],
        torch.Tensor.normal_,
    )
    monkeypatch.setattr(
        torch.Tensor, "normal_", lambda self, *how, **more: drawn.append(self.numel()) or normal(self, *how, **more)
    )
    growth.tensor(row, rows_of(weights))
    whole, block = sum(drawn), max(drawn)
    drawn.clear()
    growth.tensor(row, rows_of(weights), range(row.shape[0] // 2))
    assert whole >= 8 * block and sum(drawn) <= whole / 2 + block


@given(st.integers(0, 59), st.integers(0, 59))
@settings(max_examples=60, deadline=None)
def test_any_elements_of_rows(one, other):
    whole, (start, stop) = torch.arange(60).view(5, 3, 4), sorted((one, other))
    asked = []

    class Recording:
        def rows(self, rows: range) -> torch.Tensor:
            asked.append(rows)
            return whole[rows.start : rows.stop]

    tensor = GrownTensor((5, 3, 4), Recording())
    assert torch.equal(tensor.read(start, stop), whole.reshape(-1)[start:stop])
    assert asked[0].start == start // 12 and asked[0].stop == -(-stop // 12)
    assert torch.equal(
        torch.cat([torch.empty(0, dtype=torch.int64), *tensor.chunks(start, stop, 7)]), whole.reshape(-1)[start:stop]
    )
