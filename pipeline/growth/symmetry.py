"""Whether copies will learn different things: gradients of a unit and of its copy, measured on the grown model.

The measure of a space is the smallest |g - g'| / max(|g|, |g'|) over all pairs of an entry and its first copy, g being
the gradient of the weights that write the entry. 0: copies stay copies for ever; noise 1 gives about 0.1 to 1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pipeline import models
from pipeline.axes import Param, Table
from pipeline.growth.maps import IndexMap, Map, Maps
from pipeline.growth.probe import Inputs, fitted
from pipeline.streams import derive


def symmetry(model: PreTrainedModel, maps: Maps, inputs: Inputs, seed: int = 0) -> dict[str, float]:
    """Space -> measure, for the spaces that hold copies. The loss is a fixed random direction of the outputs as the small
    model gives them (R^T of them), so that it cannot tell copies apart by itself."""
    table, found = models.table(model.config), model(**fitted(inputs, model))
    generator = torch.Generator().manual_seed(derive(seed, "direction"))
    given = [maps[space].reads.back(found[name], -1) for name, space in table.outputs.items()]
    torch.stack([(output * torch.randn(output.shape, generator=generator)).sum() for output in given]).sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    written: dict[tuple[str, int | None], list[Tensor]] = {}
    for row in table.rows():
        for space, gradient in _parts(row, table, maps, gradients[row.module]):
            layer = None if table.spaces[space].kind == "stream" else row.layer  # a stream's entry is one unit through all layers
            written.setdefault((space, layer), []).append(gradient)
    measures: dict[str, float] = {}
    for (space, _), found_there in written.items():
        if (measure := _smallest(torch.cat(found_there, 1), maps[space].writes)) is not None:
            measures[space] = min(measure, measures.get(space, measure))
    return measures


def _parts(row: Param, table: Table, maps: Maps, gradient: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """(space, gradient with its entries first) of every space that the weight `row` writes. Left out is what separates later
    by construction: keys inside a head (their queries first), a tied head's transform (the embedding first), what a bare encoder
    gives out (the head to come)."""
    for axis, label in enumerate(row.axes if row.use == "matmul" and gradient is not None else ()):
        if label.role == "writes":
            parts = gradient.split([table.spaces[name].size for name in label.spaces], axis)
            for name, part in zip(label.spaces, parts, strict=True):
                if not maps[name].blind and table.spaces[name].kind not in ("inner", "pooled"):
                    yield name, part.movedim(axis, 0).flatten(1)


def _smallest(gradient: Tensor, written: Map) -> float | None:
    """The measure of one unit's gradients, entries first; None without copies, or where no gradient arrives."""
    if not isinstance(written, IndexMap):
        return None
    first: dict[int, int] = {}
    pairs = [(first[source], entry) for entry, source in enumerate(written.index.tolist()) if source >= 0 and first.setdefault(source, entry) != entry]
    if not pairs:
        return None
    one, other = (gradient[list(side)] for side in zip(*pairs, strict=True))
    size = torch.maximum(one.norm(dim=1), other.norm(dim=1))
    alive = size > 1e-6 * gradient.norm(dim=1).max()
    return ((one - other).norm(dim=1)[alive] / size[alive]).min().item() if alive.any() else None
