"""The order of the samples: a bijection, a pure function, the same for every world size and after every resume."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.sampler import evaluation_numbers, locate, places, position, seen, training_numbers

seeds = st.integers(0, 2**63 - 1)
epochs = st.integers(0, 10**6)


@settings(max_examples=200, deadline=None)
@given(seed=seeds, epoch=epochs, size=st.integers(1, 3000))
def test_every_epoch_visits_every_row_once(seed, epoch, size):
    rows = position(seed, epoch, np.arange(size), size)
    assert np.array_equal(np.sort(rows), np.arange(size))


@settings(max_examples=50, deadline=None)
@given(seed=seeds, size=st.integers(2, 2**62))
def test_no_two_of_many_indices_of_a_huge_set_meet(seed, size):
    index = np.unique(np.linspace(0, size - 1, 500).astype(np.int64).clip(0, size - 1))
    rows = position(seed, 0, index, size)
    assert len(np.unique(rows)) == len(index)
    assert rows.min() >= 0 and rows.max() < size


@settings(max_examples=50, deadline=None)
@given(seed=seeds, epoch=epochs, size=st.integers(1, 10**9), data=st.data())
def test_a_row_depends_on_its_own_index_alone(seed, epoch, size, data):
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    together = position(seed, epoch, index, size)
    alone = [int(position(seed, epoch, np.array(one), size)) for one in index]
    assert together.tolist() == alone


def test_shape_and_type():
    rows = position(0, 0, np.arange(6).reshape(2, 3), 6)
    assert rows.shape == (2, 3) and rows.dtype == np.int64
    assert position(0, 0, np.array([], dtype=np.int64), 6).shape == (0,)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(position(seed, epoch, np.arange(100), 100)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_outside_is_refused(index):
    with pytest.raises(IndexError, match=r"outside range\(10\)"):
        position(0, 0, np.array([index]), 10)


@pytest.mark.parametrize("size", [3, 10, 30])
def test_every_row_is_equally_often_first(size):
    """Chi-square of 200 * size epochs against the uniform distribution: mean size - 1, deviation sqrt(2 (size - 1));
    five deviations are allowed, and the outcome is fixed by the seed."""
    trials = 200 * size
    first = [int(position(1, epoch, np.array([0]), size)[0]) for epoch in range(trials)]
    counts = np.bincount(first, minlength=size)
    assert ((counts - 200) ** 2 / 200).sum() < (size - 1) + 5 * np.sqrt(2 * (size - 1))


def test_neighbours_are_scattered():
    size = 100_000
    rows = position(0, 0, np.arange(size), size)
    assert abs(np.corrcoef(rows[:-1], rows[1:])[0, 1]) < 0.02  # 1 / sqrt(size) is 0.003
    assert abs(np.corrcoef(rows, np.arange(size))[0, 1]) < 0.02


def test_the_order_is_the_same_in_every_version():
    """A run begun with one release must resume with the next."""
    assert position(0, 0, np.arange(8), 1000).tolist() == [846, 548, 157, 726, 789, 106, 431, 560]
    assert position(7, 3, np.arange(4), 10**12).tolist() == [24928840617, 773292929310, 321539141514, 157394658592]


def test_numbers_run_on_across_epochs():
    rows_of_epoch = {}
    epochs_seen, rows = locate(5, np.arange(30), 10)
    assert epochs_seen.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    for epoch in range(3):
        rows_of_epoch[epoch] = rows[epochs_seen == epoch]
        assert np.array_equal(rows_of_epoch[epoch], position(5, epoch, np.arange(10), 10))


@settings(max_examples=50, deadline=None)
@given(micro=st.integers(1, 5), passes=st.integers(1, 4), world=st.integers(1, 4), step=st.integers(0, 100))
def test_a_step_is_the_same_numbers_for_every_world_size(micro, passes, world, step):
    batch = micro * passes * world
    ranks = [list(islice(training_numbers(batch, micro, rank, world, step), passes)) for rank in range(world)]
    taken = [number for turn in zip(*ranks, strict=True) for part in turn for number in part]
    assert taken == list(range(step * batch, (step + 1) * batch))


@pytest.mark.parametrize("count", [1, 2, 6, 12])
def test_a_place_of_the_batch_holds_the_same_samples_on_any_number_of_ranks(count):
    """Which rank takes it, and in which turn, differs."""
    for world in (ranks for ranks in range(1, count + 1) if count % ranks == 0):
        taken = {}
        for rank in range(world):
            numbers = training_numbers(3 * count, 3, rank, world, 5)
            taken |= dict(zip(places(count, rank, world), numbers, strict=False))
        assert taken == {place: range(15 * count + 3 * place, 15 * count + 3 * place + 3) for place in range(count)}


@settings(max_examples=50, deadline=None)
@given(micro=st.integers(1, 5), passes=st.integers(1, 4), world=st.integers(1, 4), skip=st.integers(0, 9))
def test_resuming_equals_skipping(micro, passes, world, skip):
    batch = micro * passes * world
    whole = training_numbers(batch, micro, world - 1, world, 0)
    resumed = training_numbers(batch, micro, world - 1, world, skip)
    assert list(islice(whole, skip * passes, (skip + 2) * passes)) == list(islice(resumed, 2 * passes))


@settings(max_examples=50, deadline=None)
@given(batches=st.lists(st.integers(1, 9), max_size=3), size=st.integers(1, 400), world=st.integers(1, 3))
def test_a_stage_behind_another_reads_on_where_that_ended(batches, size, world):
    """Within an epoch no row comes twice, and each epoch is whole."""
    taken, first = [], 0
    for batch in batches:
        parts = [training_numbers(batch * world, batch, rank, world, 0, first) for rank in range(world)]
        taken += [number for _ in range(4) for part in parts for number in next(part)]
        first += 4 * batch * world
    assert taken == list(range(first))
    epochs, rows = locate(3, np.array(taken), size)
    assert len(set(zip(epochs.tolist(), rows.tolist(), strict=True))) == first


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 200), micro=st.integers(1, 20), world=st.integers(1, 5))
def test_evaluation_covers_each_number_once_in_equal_shares(size, micro, world):
    shares = [list(evaluation_numbers(size, micro, rank, world)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    assert {len(part) for share in shares for part in share} == {micro}
    counted = [number for share in shares for part in share for number in part if number < size]
    assert sorted(counted) == list(range(size))


@pytest.mark.parametrize("repeats", [2, 3, 4, 7])
def test_an_image_is_seen_so_often_near_one_another_and_beside_another_one_each_time(repeats):
    """repeats + 1 images, or one more where that is odd, are a group."""
    group = repeats + 1 if repeats % 2 else repeats + 2
    count = 5 * group * repeats
    images, views = seen(np.arange(count), repeats)
    assert images.dtype == views.dtype == np.int64
    for image in range(5 * group):
        taken = np.flatnonzero(images == image)
        assert views[taken].tolist() == list(range(repeats))
        assert np.ptp(taken) < group * repeats and taken.min() // (group * repeats) == image // group
        beside = images[taken ^ 1].tolist()
        assert len(set(beside)) == repeats and image not in beside
    assert np.array_equal(seen(np.arange(count)[::-1], repeats)[0], images[::-1]), "a function of the number alone"


def test_a_number_is_of_an_image_of_its_own_where_nothing_is_repeated():
    images, views = seen(np.arange(7, 30), 1)
    assert images.tolist() == list(range(7, 30)) and not views.any()


@pytest.mark.parametrize("batch, least, most", [(1020, 340, 340), (1024, 342, 346)])
def test_a_step_of_three_views_has_a_third_as_many_images(batch, least, most):
    """Of a batch that is no multiple of 12 the groups at its ends are shared with other steps."""
    for step in range(6):
        images, _ = seen(np.arange(step * batch, (step + 1) * batch), 3)
        assert least <= len(np.unique(images)) <= most


def test_every_image_is_seen_in_as_many_epochs_as_it_has_views():
    images, views = seen(np.arange(3 * 100), 3)
    epochs, rows = locate(7, images, 100)
    assert not epochs.any() and sorted(zip(rows, views, strict=True)) == [(r, v) for r in range(100) for v in range(3)]


def test_the_order_of_views_is_the_same_in_every_version():
    assert seen(np.arange(12), 3)[0].tolist() == [3, 0, 1, 2, 3, 1, 2, 0, 3, 2, 0, 1]
    assert seen(np.arange(12), 3)[1].tolist() == [0] * 4 + [1] * 4 + [2] * 4
