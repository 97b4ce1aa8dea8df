"""Whether copies will learn different things: gradients of a unit and of its copy, measured on the grown model.

The measure of a space is the smallest |g - g'| / max(|g|, |g'|) over all pairs of an entry and its first copy, g being
the gradient of the weights that write the entry. 0: copies stay copies for ever; noise 1 gives about 0.1 to 1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PretrainedConfig

from pipeline import models
from pipeline.growth.maps import IndexMap, Maps, SpaceMap
from pipeline.growth.verification.probe import Inputs, Trace, Weights, fitted, given_out
from pipeline.models.architecture import ParamSpec
from pipeline.models.streaming import recompute_layers, streamed_model
from pipeline.rng import derive


def symmetry(
    config: PretrainedConfig, read: Weights, maps: Maps, inputs: Inputs, seed: int = 0
) -> tuple[Trace, dict[str, float]]:
    """What the model gives out in float32, and space -> measure, for the spaces that hold copies. The loss is a fixed random direction of the outputs as the small
    model gives them (R^T of them), so that it cannot tell copies apart by itself. One layer is held at a time."""
    watched = Copies(config, maps)
    model = recompute_layers(streamed_model(config, read, watched.took))
    found = model(**fitted(inputs, model))
    generator = torch.Generator().manual_seed(derive(seed, "direction"))
    given = [maps[space].reads.back(found[name], -1) for name, space in watched.architecture.outputs.items()]
    torch.stack([(output * torch.randn(output.shape, generator=generator)).sum() for output in given]).sum().backward()
    return Trace(given_out(found, model, inputs)), watched.measures()


class Copies:
    """Sums up, gradient by gradient, how far entries and their first copies differ; no gradient is kept.

    A unit's gradient is that of all weights that write it: of one layer, or for the residual stream of all layers.
    """

    def __init__(self, config: PretrainedConfig, maps: Maps):
        self.architecture, self.maps = models.architecture_of(config), maps
        self.rows = {row.name: row for row in self.architecture.rows()}
        self.pairs = {name: _pairs(chosen) for name, chosen in maps.items()}
        self.sums: dict[tuple[str, int | None], Tensor] = {}

    def took(self, name: str, gradient: Tensor) -> None:
        """Add one parameter's gradient: squares of the difference, of the entry and of its copy."""
        row = self.rows[name]
        for space, part in self._parts(row, gradient):
            layer = None if self.architecture.spaces[space].kind == "residual" else row.layer
            one, other = (part[side] for side in self.pairs[space])
            squares = torch.stack([(one - other).square().sum(1), one.square().sum(1), other.square().sum(1)])
            self.sums[space, layer] = self.sums.get((space, layer), 0) + squares

    def _parts(self, row: ParamSpec, gradient: Tensor) -> Iterator[tuple[str, Tensor]]:
        """(space, gradient with its entries first) of every space with copies that the weight `row` writes. Left out is what
        separates later by construction: keys inside a head (their queries first), a tied head's transform (the embedding
        first), what a bare encoder gives out (the head to come)."""
        for axis, label in enumerate(row.axes if row.use == "matmul" else ()):
            if label.role == "writes":
                parts = gradient.split([self.architecture.spaces[name].size for name in label.spaces], axis)
                for name, part in zip(label.spaces, parts, strict=True):
                    if (
                        self.pairs[name] is not None
                        and not self.maps[name].blind
                        and self.architecture.spaces[name].kind not in ("inner", "pooled")
                    ):
                        yield name, part.movedim(axis, 0).flatten(1)

    def measures(self) -> dict[str, float]:
        """The smallest measure of every space; units that no gradient reaches do not count."""
        found: dict[str, float] = {}
        for (space, _), (apart, one, other) in self.sums.items():
            size = torch.maximum(one, other).sqrt()
            alive = size > 1e-6 * size.max()
            if alive.any():
                found[space] = min(found.get(space, float("inf")), (apart.sqrt()[alive] / size[alive]).min().item())
        return found


def _pairs(chosen: SpaceMap) -> tuple[Tensor, Tensor] | None:
    """Positions of first copies and of their repetitions; None where nothing is copied."""
    if not isinstance(chosen.writes, IndexMap):
        return None
    first: dict[int, int] = {}
    index = enumerate(chosen.writes.index.tolist())
    pairs = [
        (first[source], entry) for entry, source in index if source >= 0 and first.setdefault(source, entry) != entry
    ]
    return tuple(torch.tensor(side) for side in zip(*pairs, strict=True)) if pairs else None
