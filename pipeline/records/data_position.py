"""How far the samples of a run have been read, as the provenance of a checkpoint says it."""

from dataclasses import asdict, dataclass
from typing import Any

KEY = "samples"
"""Of the provenance in a manifest."""


@dataclass(frozen=True)
class DataPosition:
    """next: the number of the first sample that was not read, of epochs of `size` samples under `seed` (see
    data/sampler.py); block: tokens of one, None of images; repeats: views of an image."""

    next: int
    size: int
    seed: int
    block: int | None
    repeats: int = 1

    @classmethod
    def of(cls, number: int, facts: dict[str, Any], seed: int, repeats: int = 1) -> "DataPosition":
        """facts: of the prepared data."""
        return cls(number, facts["training"], seed, facts.get("block"), repeats)

    def behind(self, other: "DataPosition | None") -> "DataPosition":
        """The later of two positions in the same order; itself where the other is one in another."""
        return other if other is not None and other.order == self.order and other.next > self.next else self

    @property
    def order(self) -> tuple[int, int, int | None, int]:
        """What decides which sample a number is."""
        return self.size, self.seed, self.block, self.repeats

    def in_order_of(self, other: "DataPosition") -> int | None:
        """The number from which a stage in the order of `other` reads on: in other blocks of the same text the first
        of the next epoch. None where it reads other data, or under another seed."""
        if self.order == other.order:
            return self.next
        if self.block is None or other.block is None or self.seed != other.seed:
            return None
        if abs(self.size * (self.block - 2) - other.size * (other.block - 2)) >= max(self.block, other.block):
            return None
        return -(-self.next // self.size) * other.size

    @property
    def words(self) -> str:
        kind = "images" if self.block is None else f"blocks of {self.block} tokens"
        views = f", {self.repeats} views of each" if self.repeats > 1 else ""
        return f"{self.size:,} {kind} an epoch under seed {self.seed}{views}"

    def as_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if (key, value) != ("repeats", 1)}
