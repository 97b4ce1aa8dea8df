"""The identities every growth rests on, over random sizes: R^T E = I, N E = 0, what a LayerNorm sees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.growth import maps

SIZES = st.tuples(st.integers(1, 24), st.integers(0, 60)).map(lambda pair: (pair[0], pair[0] + pair[1]))
RULES = {"stream": maps.stream, "normed": maps.normed, "tied": maps.tied, "circular": maps.circular}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(SIZES, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_reading_undoes_writing_and_noise_is_not_seen(rule, sizes, seed):
    chosen = rule(*sizes)
    written, read = chosen.writes.dense(), chosen.reads.dense()
    assert (read.T @ written - torch.eye(sizes[0])).abs().max() < 1e-12
    noise = torch.randn(3, sizes[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert (chosen.project(noise, 1) @ written).abs().max() < 1e-12


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 9))
@settings(deadline=None)
def test_heads_are_copied_whole(unit, heads, more):
    chosen = maps.circular(unit * heads, unit * (heads + more), unit)
    index = chosen.writes.index.view(-1, unit)
    assert (index - index[:, :1] == torch.arange(unit)).all() and (index[:, 0] % unit == 0).all()


@given(SIZES, st.integers(0, 2**31))
@settings(deadline=None)
def test_layernorm_sees_the_same_up_to_eta(sizes, seed):
    """C E^T E C is proportional to C, and the mean is kept: the condition of growth-math, section 4."""
    small, large = sizes
    x = torch.randn(small, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    grown = maps.stream(small, large).writes.apply(x, 0)
    assert grown.mean().item() == pytest.approx(x.mean().item(), abs=1e-12)
    expected = maps.eta(small, large) ** 2 * x.var(unbiased=False)
    assert grown.var(unbiased=False).item() == pytest.approx(expected.item(), abs=1e-12)


@given(SIZES)
@settings(deadline=None)
def test_apply_is_the_dense_product(sizes):
    x = torch.randn(4, sizes[0], 3, dtype=torch.float64)
    for chosen in (maps.stream(*sizes), maps.tied(*sizes)):
        for side in (chosen.writes, chosen.reads, chosen.gains):
            assert torch.allclose(side.apply(x, 1), torch.einsum("ts,bsc->btc", side.dense(), x), atol=1e-12)


def test_a_grown_gain_has_no_dead_entries():
    gains = maps.normed(4, 11).gains.apply(torch.ones(4, dtype=torch.float64), 0)
    assert (gains == 1).all()
    assert not maps.normed(4, 11).writes.apply(torch.ones(4, dtype=torch.float64), 0)[8:].any()


def test_noise_stays_large_where_it_may():
    """The projection takes out no more than it must: what remains of fresh noise is of the same size."""
    noise = torch.randn(50, 40, dtype=torch.float64)
    assert maps.circular(20, 40).project(noise, 1).std() == pytest.approx(0.5**0.5, rel=0.1)
