"""Whether copies will learn different things: gradients of a unit and of its copy, measured on the grown model.

The measure of a space is the smallest |g - g'| / max(|g|, |g'|) over all pairs of an entry and its first copy, g being
the gradient of the weights that write the entry. 0: copies stay copies for ever; noise 1 gives about 0.1 to 1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from pipeline.growth.maps import IndexMap, LayerKey, SpaceMap
from pipeline.growth.plan import GrowthPlan
from pipeline.growth.verification.probe import Trace, called, given_out, observed_outputs, require_finite
from pipeline.models.architecture import ParamSpec
from pipeline.models.probes import Inputs
from pipeline.models.streaming import RunnableModel, recompute_layers, streamed_model
from pipeline.rng import derive


def symmetry(large: RunnableModel, plan: GrowthPlan, inputs: Inputs) -> tuple[Trace, dict[str, float]]:
    """What the large model gives out in float32, and space -> measure, for the spaces that hold copies.

    The loss is a fixed random direction of the outputs as the small model gives them (R^T of them), so that it cannot
    tell copies apart by itself. One layer's weights are in memory at a time. Raises UserError for outputs and
    gradients that are not finite.
    """
    copies = CopyGradients(plan)
    model = recompute_layers(streamed_model(large, copies.on_gradient))
    outputs = called(model, inputs)
    given = given_out(outputs, plan.target)
    generator = torch.Generator().manual_seed(derive(plan.options.seed, "direction"))
    loss = torch.zeros(())
    for name, space in plan.target.outputs.items():
        require_finite(f"output '{name}' of the target", given[name])
        output = plan.maps[space].reads.apply_transpose(given[name], -1)
        loss = loss + (output * torch.randn(output.shape, generator=generator)).sum()
    loss.backward()
    return Trace(observed_outputs(outputs, model, inputs)), copies.measures()


class CopyGradients:
    """Sums up, gradient by gradient, how far entries and their first copies differ; no gradient is kept.

    A unit's gradient is that of all weights that write it: of one layer, or for the residual stream of all layers.
    """

    def __init__(self, plan: GrowthPlan):
        self.plan = plan
        self.params = {param.name: param for param in plan.target.rows()}
        self.sums: dict[tuple[str, LayerKey | None], Tensor] = {}
        self.pairs: dict[int, tuple[Tensor, Tensor] | None] = {}

    def on_gradient(self, name: str, gradient: Tensor) -> None:
        """Add one parameter's gradient: squares of the difference, of the entry and of its copy."""
        for space, layer, (first, copy) in self._copies(self.params[name], gradient):
            squares = torch.stack([(first - copy).square().sum(1), first.square().sum(1), copy.square().sum(1)])
            self.sums[space, layer] = self.sums.get((space, layer), torch.zeros(())) + squares

    def _copies(
        self, param: ParamSpec, gradient: Tensor
    ) -> Iterator[tuple[str, LayerKey | None, tuple[Tensor, Tensor]]]:
        """(space, layer, gradients of first entries and of their copies) of every space with copies that a weight
        writes. Left out is what separates later by construction: keys inside a head (their queries first), a tied
        head's transform (the embedding first), what the model gives out (the head to come)."""
        for axis, label in enumerate(param.axes if param.use == "matmul" else ()):
            if label.role != "writes":
                continue
            parts = gradient.split([self.plan.target.spaces[name].size for name in label.spaces], axis)
            for name, part in zip(label.spaces, parts, strict=True):
                kind, space_map = self.plan.target.spaces[name].kind, self.plan.maps.at(name, param.stack, param.layer)
                pairs = self._pairs_of(space_map)
                later = kind == "inner" or (kind == "pooled" and name in self.plan.target.outputs.values())
                if pairs is not None and not space_map.query_null_space and not later:
                    layer = None if kind == "residual" or param.layer is None else (param.stack, param.layer)
                    entries = part.movedim(axis, 0).flatten(1)
                    yield name, layer, (entries[pairs[0]], entries[pairs[1]])

    def _pairs_of(self, space_map: SpaceMap) -> tuple[Tensor, Tensor] | None:
        """`_pairs`, once for a map of the plan."""
        if id(space_map) not in self.pairs:
            self.pairs[id(space_map)] = _pairs(space_map)
        return self.pairs[id(space_map)]

    def measures(self) -> dict[str, float]:
        """The smallest measure of every space; units that no gradient reaches do not count. Raises UserError for a
        gradient that is not finite, which would count as none."""
        smallest: dict[str, float] = {}
        for (space, _), (apart, first, copy) in self.sums.items():
            require_finite(f"the gradient of '{space}' of the target", torch.stack([first, copy]))
            size = torch.maximum(first, copy).sqrt()
            alive = size > 1e-6 * size.max()
            if alive.any():
                measure = (apart.sqrt()[alive] / size[alive]).min().item()
                smallest[space] = min(smallest.get(space, float("inf")), measure)
        return smallest


def _pairs(space_map: SpaceMap) -> tuple[Tensor, Tensor] | None:
    """Positions of first copies and of their repetitions; None where nothing is copied."""
    if not isinstance(space_map.writes, IndexMap):
        return None
    first: dict[int, int] = {}
    index = enumerate(space_map.writes.index.tolist())
    pairs = [
        (first[source], entry) for entry, source in index if source >= 0 and first.setdefault(source, entry) != entry
    ]
    return (torch.tensor([one for one, _ in pairs]), torch.tensor([copy for _, copy in pairs])) if pairs else None
