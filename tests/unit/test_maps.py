"""The identities every growth rests on, over random sizes: R^T E = I, N E = 0, what a norm sees, what an attention
sees."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.growth import maps
from pipeline.growth.attention import attention_maps, lost_heads
from pipeline.growth.interpolation import pixels
from pipeline.growth.maps import MEAN, ZERO, DenseMap, IndexMap
from pipeline.models.architecture import Architecture, Attention, LayerStack, NormEpsilon, heads, spaces

SIZES = st.tuples(st.integers(1, 24), st.integers(0, 60)).map(lambda pair: (pair[0], pair[0] + pair[1]))
SEEDS = st.integers(0, 2**31)
RULES = {
    "residual": maps.residual,
    "stream of RMSNorm": lambda a, b: maps.residual(a, b, rms=True),
    "normed": maps.normed,
    "tied": maps.tied,
    "tied of RMSNorm": lambda a, b: maps.tied(a, b, rms=True),
    "circular": maps.circular,
    "appended": maps.appended,
    "shared": lambda a, b: maps.shared(
        torch.cat([torch.arange(a), torch.randint(a, (b - a,), generator=torch.Generator().manual_seed(b))]), a
    ),
}
ROLES = ("query", "key", "value", "context")
random_sizes = settings(max_examples=40, deadline=None)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def near(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() < 1e-12)


@st.composite
def index_maps(draw_one) -> IndexMap:
    """Any index map: copies in any order, zeros, and means in one block of one weight, as every rule has them."""
    source, target, means = draw_one(st.integers(1, 9)), draw_one(st.integers(1, 20)), draw_one(st.integers(0, 3))
    index = draw_one(st.lists(st.integers(ZERO, source - 1), min_size=target, max_size=target))
    weight = draw_one(st.lists(st.sampled_from([1.0, 0.5, 3.0]), min_size=target, max_size=target))
    return IndexMap(
        torch.tensor(index + [MEAN] * means), torch.tensor(weight + [0.5] * means, dtype=torch.float64), source
    )


def matrix(chosen: IndexMap) -> Tensor:
    """The matrix, written down entry by entry."""
    rows = torch.zeros(len(chosen.index), chosen.source, dtype=torch.float64)
    for target, (source, weight) in enumerate(zip(chosen.index.tolist(), chosen.weight.tolist(), strict=True)):
        if source == MEAN:
            rows[target] = weight / chosen.source
        elif source != ZERO:
            rows[target, source] = weight
    return rows


@given(index_maps(), SEEDS)
@random_sizes
def test_a_map_is_its_matrix(chosen, seed):
    """Applied, transposed, scaled, squared and cut, along any axis, as an index map and as a dense one."""
    expected, before, after = matrix(chosen), draw(seed, 3, chosen.source, 2), draw(seed, 3, len(chosen.index), 2)
    assert near(chosen.dense(), expected)
    kept = draw(seed, len(chosen.index)) > 0
    for each in (chosen, DenseMap(expected)):
        assert near(each.apply(before, 1), torch.einsum("ts,bsc->btc", expected, before))
        assert near(each.apply(before.transpose(1, 2), 2), torch.einsum("ts,bsc->bct", expected, before))
        assert near(each.apply_transpose(after, 1), torch.einsum("ts,btc->bsc", expected, after))
        assert near(each.apply_transpose(after.transpose(1, 2), -1), torch.einsum("ts,btc->bcs", expected, after))
        assert near(each.scaled(2.5).apply(before, 1), 2.5 * each.apply(before, 1))
        assert near(each.squared().apply(before, 1), torch.einsum("ts,bsc->btc", expected**2, before))
    assert near(chosen.only(kept).dense(), expected * kept[:, None])
    assert near(chosen.copied().dense(), expected * (chosen.index != MEAN)[:, None])
    assert chosen.apply(before.float(), 1).dtype == torch.float32
    unit = torch.eye(chosen.source, dtype=torch.float64)
    assert chosen.identity == (torch.equal(expected, unit) and MEAN not in chosen.index)


@given(index_maps(), SEEDS)
@random_sizes
def test_noise_is_not_seen_and_nothing_more_is_taken(chosen, seed):
    """N E = 0; what is unseen already stays as it is, and what is taken away is orthogonal to what stays."""
    noise, written = draw(seed, 3, len(chosen.index)), chosen.dense()
    free = chosen.project_to_null_space(noise, 1)
    assert (free @ written).abs().max() < 1e-12
    assert near(chosen.project_to_null_space(free, 1), free)
    assert near(chosen.project_to_null_space(noise.T.contiguous(), 0), free.T)
    assert ((noise - free) @ free.T).abs().max() < 1e-12


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@given(SIZES, SEEDS)
@random_sizes
def test_reading_undoes_writing(rule, sizes, seed):
    chosen = rule(*sizes)
    written, read = chosen.writes.dense(), chosen.reads.dense()
    assert near(read.T @ written, torch.eye(sizes[0]).double())
    x = draw(seed, sizes[0], 2)
    assert near(chosen.reads.apply_transpose(chosen.writes.apply(x, 0), 0), x)
    assert (chosen.writes.project_to_null_space(draw(seed, 2, sizes[1]), 1) @ written).abs().max() < 1e-12
    assert chosen.free == (sizes[1] > sizes[0] and not chosen.appended)


@given(SIZES)
@random_sizes
def test_a_layer_norm_sees_the_same_up_to_eta(sizes):
    """C E^T E C is proportional to C, and the mean is kept (growth-math, section 4)."""
    small, large = sizes
    written, centre = maps.residual(small, large).writes.dense(), torch.eye(small).double() - 1 / small
    assert near(centre @ written.T @ written @ centre, maps.eta(small, large) ** 2 * large / small * centre)
    assert near(written.mean(0), torch.full((small,), 1 / small, dtype=torch.float64))


@given(SIZES)
@random_sizes
def test_an_rms_norm_sees_the_same_up_to_eta(sizes):
    small, large = sizes
    written = maps.residual(small, large, rms=True).writes.dense()
    assert near(written.T @ written, maps.eta(small, large) ** 2 * large / small * torch.eye(small).double())


@pytest.mark.parametrize("rms", [False, True])
@given(SIZES)
@random_sizes
def test_a_tied_embedding_reads_what_was_meant(rms, sizes):
    """It is grown by the stream's rule and multiplies by its columns: the two E together are the identity, and what
    comes back to the norm (the gradient) is what the embedding holds."""
    embedding, ended = maps.residual(*sizes, rms).writes.dense(), maps.tied(*sizes, rms)
    assert near(embedding.T @ ended.writes.dense(), torch.eye(sizes[0]).double())
    assert sizes[0] == sizes[1] or near(ended.reads.dense(), embedding)


@pytest.mark.parametrize("rule", [maps.normed, maps.tied, maps.residual])
@given(SIZES)
@random_sizes
def test_a_grown_gain_has_no_dead_entries(rule, sizes):
    """Its remainder meets a zero and may be anything; zero would keep it, and what reads it, dead for ever."""
    assert rule(*sizes).gains.apply(torch.ones(sizes[0]).double(), 0).all()
    assert (
        not maps.normed(*sizes).writes.apply(torch.ones(sizes[0]).double(), 0)[sizes[1] // sizes[0] * sizes[0] :].any()
    )


@pytest.mark.parametrize("copies", [2, 3, 5])
def test_noise_stays_as_large_as_it_may(copies):
    """Of k copies the projection takes one part in k."""
    noise = draw(0, 50, 40 * copies)
    assert maps.circular(40, 40 * copies).writes.project_to_null_space(noise, 1).std().item() == pytest.approx(
        (1 - 1 / copies) ** 0.5, rel=0.03
    )


def test_a_patch_of_one_colour_gives_the_same_number():
    for before, after in ((4, 8), (14, 16), (16, 24), (1, 3)):
        assert near(pixels(before, after).reads.matrix.sum(0), torch.ones(before).double())


@st.composite
def attentions(draw_one, rope: bool = False, qk_norm: bool = False) -> tuple[Architecture, Architecture]:
    """Two attentions of which one may grow into the other: heads, groups and the size of a head, in any combination."""
    groups, per, unit = (draw_one(st.integers(1, most)) for most in (3, 3, 5))
    more_groups, more_per, more_unit = (
        draw_one(st.integers(groups, 7)),
        draw_one(st.integers(1, 5)),
        draw_one(st.integers(unit, 16)),
    )
    attend = Attention(rope=rope, qk_norm=qk_norm)

    def architecture(count: int, kv: int, size: int) -> Architecture:
        return Architecture(
            "any", spaces(*heads(count, size, kv)), (LayerStack("layers", 1, (attend,)),), (), NormEpsilon(1e-6, "eps")
        )

    pair = (
        architecture(groups * per, groups, unit),
        architecture(more_groups * more_per, more_groups, unit if rope or qk_norm else more_unit),
    )
    assume(not lost_heads(attend, *pair, torch.arange(more_groups) % groups))
    return pair


def circular(before: int, after: int) -> Tensor:
    return torch.arange(after) % before


@given(attentions(), SEEDS)
@random_sizes
def test_heads_read_what_was_written(pair, seed):
    """R^T E = I in all four spaces; whole heads go together; keys have a part that queries do not see."""
    chosen = attention_maps(*pair, circular, 1.0)
    unit = pair[1].spaces["query"].unit
    for role in ROLES:
        written = chosen[role].writes.dense()
        assert near(chosen[role].reads.dense().T @ written, torch.eye(pair[0].spaces[role].size).double())
        owners = (chosen[role].writes.index // pair[0].spaces["query"].unit).view(-1, unit)
        assert all(len(set(owner.tolist()) - {-1}) == 1 for owner in owners)
        assert (chosen[role].writes.project_to_null_space(draw(seed, 2, len(written)), 1) @ written).abs().max() < 1e-12
    assert (chosen["key"].query_null_space is not None) == (unit > pair[0].spaces["query"].unit)


@given(attentions(), SEEDS)
@random_sizes
def test_scores_and_what_heads_give_out_are_kept(pair, seed):
    """q* . k* / sqrt(d_T) = q . k / sqrt(d_S) for every target head and the head it copies; row noise of keys changes
    nothing; with one key, a head gives out its group's value."""
    small, large = pair
    chosen = attention_maps(small, large, circular, 1.0)
    before, after = small.spaces["query"].unit, large.spaces["query"].unit
    query, key, value = (draw(seed + n, small.spaces[role].size) for n, role in enumerate(ROLES[:3]))
    scores = _scores(query.view(-1, before), key.view(-1, before))
    noise = draw(seed, large.spaces["key"].size)
    queries = chosen["key"].query_null_space
    unseen = queries.project_to_null_space(noise, 0) if queries else 0 * noise
    grown_query, grown_key = chosen["query"].writes.apply(query, 0), chosen["key"].writes.apply(key, 0)
    source = chosen["context"].writes.index.view(-1, after)[:, 0] // before
    assert near(_scores(grown_query.view(-1, after), grown_key.view(-1, after)), scores[source])
    assert near(_scores(grown_query.view(-1, after), (grown_key + unseen).view(-1, after)), scores[source])
    assert not unseen.any() or (unseen.abs().max() > 1e-3 and after >= before)
    given_out = _spread(value.view(-1, before), small.spaces["query"].count)
    grown_out = _spread(chosen["value"].writes.apply(value, 0).view(-1, after), large.spaces["query"].count)
    assert near(chosen["context"].writes.apply(given_out.flatten(), 0), grown_out.flatten())


@given(attentions(qk_norm=True), st.floats(0.5, 1.0))
@random_sizes
def test_a_norm_on_heads_sees_eta(pair, eta):
    """A norm over head_dim shares the epsilon, which grows by eta^2: so must what it reads."""
    chosen = attention_maps(*pair, circular, eta)
    for role in ("query", "key"):
        written = chosen[role].writes.dense()
        assert near(written.abs().sum(1), torch.full((len(written),), eta, dtype=torch.float64))
        assert near(chosen[role].reads.dense().T @ written, torch.eye(written.shape[1]).double())


def _spread(groups: Tensor, count: int) -> Tensor:
    """What each head of `count` takes from its group."""
    return groups.repeat_interleave(count // len(groups), 0)


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """One number per query head, against its group's key."""
    return (query * _spread(key, len(query))).sum(1) / math.sqrt(query.shape[1])
