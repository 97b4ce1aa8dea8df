"""The order of the samples: a pure function of (seed, epoch, index).

Each epoch visits every sample once, in the order of a keyed permutation that is computed, not stored: a
Feistel network on the smallest square domain 2**(2h) >= size, walked until it falls inside range(size)
(Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Any position costs O(1) time and no memory,
so a resume at any step of any data set costs nothing.

The samples of a run are numbered 0, 1, 2, … without end: number n is index n % size of epoch n // size. A step
takes the next `batch` numbers, also across an epoch's end, so nothing is dropped, and which samples a step sees
depends neither on the ranks nor on the loader's workers. Where images are repeated (Hoffer et al., arXiv:1901.09335),
the numbers of a run are of views, and every image is seen once in as many epochs as it has views.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np

from pipeline.rng import derive

ROUNDS = 8
"""Four rounds make a Feistel network pseudo-random (Luby and Rackoff, 1988); the halves of small sets are a few
bits only, where more rounds help."""


def position(seed: int, epoch: int, index: np.ndarray, size: int) -> np.ndarray:
    """The rows at `index` (integers in range(size), any shape) in the order of `epoch`.

    A bijection of range(size) for every (seed, epoch). Returns int64 of the shape of `index`.
    Raises IndexError when an index lies outside range(size).
    """
    index = np.asarray(index)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise IndexError(f"index {index.min()}..{index.max()} outside range({size})")
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = [derive(seed, "order", epoch, number) for number in range(ROUNDS)]
    rows = _permute(index.ravel().astype(np.uint64), keys, half)
    outside = np.flatnonzero(rows >= size)
    while outside.size:  # the domain is less than 4 * size (8 at least): a few walks on average
        rows[outside] = _permute(rows[outside], keys, half)
        outside = outside[rows[outside] >= size]
    return rows.astype(np.int64).reshape(index.shape)


def _permute(values: np.ndarray, keys: list[int], half: int) -> np.ndarray:
    """One pass of the Feistel network over uint64 values below 2**(2 * half)."""
    low = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & low
    for key in keys:
        left, right = right, left ^ (_mix(right + np.uint64(key)) & low)
    return (left << np.uint64(half)) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014); products wrap at 64 bits."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed


def locate(seed: int, numbers: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Global sample numbers -> (epoch of each, row of each in the data set), both int64."""
    epochs, index = np.divmod(np.asarray(numbers, dtype=np.int64), size)
    rows = np.empty_like(index)
    for epoch in np.unique(epochs):
        in_epoch = epochs == epoch
        rows[in_epoch] = position(seed, int(epoch), index[in_epoch], size)
    return epochs, rows


def seen(numbers: np.ndarray, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Global sample numbers, where every image is shown `repeats` times -> (number of each image in an order without
    repeats, which of its views it is), both int64.

    A group of images is shown as a whole once, then once more, and so on: `repeats` times, in another order each time,
    so that the views of an image lie near one another, and none has the same neighbour n ^ 1 as another.
    """
    numbers = np.asarray(numbers, dtype=np.int64)
    if repeats == 1:
        return numbers, np.zeros_like(numbers)
    turns = _turns(repeats)
    group = turns.shape[1]
    groups, place = np.divmod(numbers, turns.size)
    views, seats = np.divmod(place, group)
    return groups * group + turns[views, seats], views


@cache
def _turns(repeats: int) -> np.ndarray:
    """(repeats, images of a group): the order of a group's images in each turn. In pairs, they are the first turns of a
    round robin: no two images are a pair twice."""
    others = repeats | 1
    pairs = [
        [(others, turn), *(((turn + step) % others, (turn - step) % others) for step in range(1, (others + 1) // 2))]
        for turn in range(repeats)
    ]
    return np.array(pairs, dtype=np.int64).reshape(repeats, others + 1)


def places(count: int, rank: int, world: int) -> range:
    """Which of a step's `count` micro-batches a rank takes, by their place in the whole batch: what a place holds, and
    the dropout that it meets, is the same for every number of ranks."""
    return range(rank, count, world)


def training_numbers(
    batch: int, micro_batch: int, rank: int, world: int, first_step: int, first_sample: int = 0
) -> Iterator[range]:
    """This rank's micro-batches of global sample numbers from step `first_step` on, without end.

    Step k takes the `batch` numbers from first_sample + k * batch on, its micro-batch at place p `micro_batch` of them,
    p * micro_batch behind that.
    """
    step = first_step
    while True:
        for place in places(batch // micro_batch, rank, world):
            start = first_sample + step * batch + place * micro_batch
            yield range(start, start + micro_batch)
        step += 1


def evaluation_numbers(size: int, micro_batch: int, rank: int, world: int) -> Iterator[range]:
    """This rank's share of range(size): as many equal micro-batches on every rank; numbers >= size are padding."""
    for start in range(0, size, micro_batch * world):
        yield range(start + rank * micro_batch, start + (rank + 1) * micro_batch)


def evaluation_passes(size: int, micro_batch: int, world: int) -> int:
    """Micro-batches of all ranks in one evaluation, those that are filled up included."""
    return -(-size // (micro_batch * world)) * world
