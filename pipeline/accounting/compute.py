"""The training compute behind a model, that of all that it was made from included."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.accounting.lineage import Ancestor


@dataclass(frozen=True)
class Compute:
    """FLOPs of a part of a lineage, as far as they are recorded. unknown: the names of those of which they are not."""

    flops: int
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Growth:
    """One expansion: the training compute of its source, and of the training from it to the next expansion, or the end,
    the fit of the growth included."""

    name: str
    source: Compute
    since: Compute

    @property
    def share(self) -> float | None:
        """What followed the growth as a share of its source's compute; None where either is not known."""
        known = self.source.flops and not (self.source.unknown or self.since.unknown)
        return self.since.flops / self.source.flops if known else None


def training_compute(ancestors: Sequence[Ancestor]) -> Compute:
    """Forward, backward, recomputation and updates of all training; neither evaluations nor steps that were lost."""
    known = [ancestor.training_flops for ancestor in ancestors]
    unknown = tuple(ancestor.name for ancestor in ancestors if ancestor.training_flops is None)
    return Compute(sum(flops for flops in known if flops is not None), unknown)


def growths(ancestors: Sequence[Ancestor]) -> list[Growth]:
    """The expansions of a lineage, oldest first. ancestors: oldest first too."""
    places = [place for place, ancestor in enumerate(ancestors) if ancestor.kind == "expand"]
    return [
        Growth(ancestors[begin].name, training_compute(ancestors[:begin]), training_compute(ancestors[begin:end]))
        for begin, end in pairwise([*places, len(ancestors)])
    ]
