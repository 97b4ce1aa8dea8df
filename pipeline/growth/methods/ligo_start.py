"""Where LiGO's matrices and mixtures of layers start.

`rand` and `sel` are the released code's: under the identity rows of Uniform(0, 1) numbers divided by their sum, which
are nearly the mean of all units, or rows with a single 1, drawn. After `rand` every LayerNorm gives out numbers that
are sqrt(D_T / D_S) times too large, for the new entries hardly vary; `rand-eta` scales the norms' gains by
sqrt(D_S / D_T) and their epsilon by its square. `lossless` takes LEMON's matrices (lemon.py).
"""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.growth.maps import DenseMap, IndexMap, Map, SpaceMap, same
from pipeline.growth.method import GrowthContext, LayerOrigin, copies_of, in_pattern, repeated, stacked
from pipeline.growth.methods import lemon
from pipeline.growth.methods.lemon import Lemon, LemonOptions
from pipeline.models.architecture import Architecture, Attention, LayerStack, ParamSpec, Space
from pipeline.rng import derive

STREAM = ("residual", "normed", "branch", "inner", "tied")
"""Kinds of spaces with one matrix for all: the stream, and what norms read or give out; entry by entry the same."""
NOT_LEARNED = ("lookup", "grid", "pixels", "fixed")
MOST = 0.03
"""Of a layer that is not the one a target layer starts from: Uniform(0, MOST) in its row of weights."""
ROLES = {"writes": ("writes", "scales"), "reads": ("reads",), "gains": ("gain",)}
"""The roles of axes that go by a side of a space's map."""
LEMON = LemonOptions()
"""Whose layers `lossless` starts with: new ones directly behind their origin, spread, adding nothing."""


@dataclass(frozen=True)
class Matrix:
    """One that is learned. start: (units of the target, of the source). unit: entries of a unit, where units are mixed
    as wholes. fixed: rows at the top that are the identity for good."""

    start: Tensor
    unit: int = 1
    fixed: int = 0

    @property
    def learned(self) -> Tensor:
        return self.start[self.fixed :]

    def whole(self, learned: Tensor) -> Tensor:
        """All rows, from the learned ones; differentiable."""
        if not self.fixed:
            return learned
        return torch.cat([torch.eye(self.fixed, learned.shape[1]).to(learned), learned])


@dataclass(frozen=True)
class Side:
    """How one side of a space goes by a matrix: as it is, or, of heads that share values in groups, by `groups`: for
    every head of the target and of the source its group, and which of them have the same place in theirs."""

    matrix: str
    groups: tuple[Tensor, Tensor, Tensor] | None = None

    def map(self, matrix: Tensor, unit: int) -> DenseMap:
        if self.groups:
            target, source, together = self.groups
            matrix = matrix[target][:, source] * together.to(matrix)
        return DenseMap(torch.kron(matrix, torch.eye(unit).to(matrix)) if unit > 1 else matrix)


@dataclass(frozen=True)
class Start:
    """matrices: by name. sides: of the spaces that are learned, side -> what it goes by. base: every space as it would
    be without."""

    base: dict[str, SpaceMap]
    matrices: dict[str, Matrix] = field(default_factory=dict)
    sides: dict[str, dict[str, Side]] = field(default_factory=dict)

    def space(self, name: str, matrices: dict[str, Tensor]) -> SpaceMap:
        """A space's map. matrices: by name, whole."""
        maps: dict[str, Any] = {
            side: each.map(matrices[each.matrix], self.matrices[each.matrix].unit)
            for side, each in self.sides.get(name, {}).items()
        }
        return replace(self.base[name], **maps, query_null_space=None) if maps else self.base[name]


def start(source: Architecture, target: Architecture, context: GrowthContext) -> Start:
    """Where the matrices of a growth start, as the options say."""
    if context.options.width_init == "lossless":
        return _lossless(source, target, context)
    return _Drawn(source, target, context).start()


def _lossless(source: Architecture, target: Architecture, context: GrowthContext) -> Start:
    """LEMON's maps, each side of each space a matrix of its own."""
    begun = Start(dict(Lemon().maps(source, target, context)))
    for name, space_map in begun.base.items():
        if target.spaces[name].kind in NOT_LEARNED:
            continue
        for side in used_sides(target, name):
            known: Map = getattr(space_map, side)
            if isinstance(known, IndexMap) and not known.identity:
                unit = _whole_heads(target, name)
                begun.matrices[f"{name} {side}"] = Matrix(known.dense()[::unit, ::unit], unit)
                begun.sides.setdefault(name, {})[side] = Side(f"{name} {side}")
    return begun


def used_sides(target: Architecture, space: str) -> list[str]:
    """The sides of a space's map by which a tensor goes."""
    return [side for side, roles in ROLES.items() if any(param.touches(space, *roles) for param in target.params)]


def _whole_heads(target: Architecture, name: str) -> int:
    """Entries of a head where heads are mixed as wholes: where positions turn pairs of entries of queries and keys, or
    groups share keys and values; else 1."""
    whole = [each for each in target.attentions if each.rope or target.grouped]
    named = {space for each in whole for space in (each.query, each.key, each.value, each.context)}
    return target.spaces[name].unit if name in named else 1


class _Drawn:
    """The identity, and drawn rows under it."""

    def __init__(self, source: Architecture, target: Architecture, context: GrowthContext):
        self.source, self.target, self.options, self.seed = source, target, context.options, context.seed
        self.heads = {
            name: each for each in target.attentions for name in (each.query, each.key, each.value, each.context)
        }
        self.begun = Start({name: self._base(space) for name, space in target.spaces.items()})

    def start(self) -> Start:
        for name, space in self.target.spaces.items():
            if space.kind not in NOT_LEARNED and space.size != self.source.spaces[name].size:
                self.begun.sides[name] = {side: self._side(space, side) for side in used_sides(self.target, name)}
        return self.begun

    def _base(self, space: Space) -> SpaceMap:
        """What is not learned: rows that are appended, and the norms' factor."""
        before = self.source.spaces[space.name]
        if space.kind in NOT_LEARNED or space.size == before.size:
            return lemon.space_map(before, space, self.target.rms)
        scaled = self.options.width_init == "rand-eta" and space.kind in STREAM
        return replace(same(before.size), eta=math.sqrt(before.size / space.size) if scaled else 1.0)

    def _side(self, space: Space, side: str) -> Side:
        """What a side goes by: everything by E in the tied family; in the untied one each reader has its own."""
        tied, written = self.options.maps == "tied", self._written(space)
        if not tied and (side == "reads" or space.kind == "tied"):
            return Side(self._inverse(space, written))
        return written

    def _written(self, space: Space) -> Side:
        """E: of the stream and of all norms' outputs one, of the heads' output that of the values."""
        if space.kind in STREAM:
            return Side(self._matrix(self.target.residual))
        if space.kind == "context":
            attention = self.heads[space.name]
            groups = self._groups(attention) if self.target.grouped else None
            return Side(self._matrix(self.target.spaces[attention.value]), groups)
        return Side(self._matrix(space))

    def _matrix(self, space: Space) -> str:
        name, unit = f"{space.name} E", _whole_heads(self.target, space.name)
        if name not in self.begun.matrices:
            before, after = self.source.spaces[space.name].size // unit, space.size // unit
            self.begun.matrices[name] = Matrix(
                torch.cat([torch.eye(before).double(), self._rows(name, before, after)]), unit, before
            )
        return name

    def _rows(self, name: str, before: int, after: int) -> Tensor:
        generator = torch.Generator().manual_seed(derive(self.seed, "ligo", name))
        if self.options.width_init == "sel":
            drawn = torch.randint(before, (after - before,), generator=generator)
            return torch.nn.functional.one_hot(drawn, before).double()
        rows = torch.rand(after - before, before, generator=generator, dtype=torch.float64)
        return rows / rows.sum(1, keepdim=True)

    def _inverse(self, space: Space, written: Side) -> str:
        """R (or what a tied decoder's norm is written by): E (E^T E)^-1, so that R^T E = I; among copies it shares."""
        name, matrix = f"{space.name} R", self.begun.matrices[written.matrix]
        unit = matrix.unit
        whole = written.map(matrix.start, 1).matrix
        self.begun.matrices[name] = Matrix(torch.linalg.pinv(whole).T.contiguous(), unit)
        return name

    def _groups(self, attention: Attention) -> tuple[Tensor, Tensor, Tensor]:
        of, place = zip(
            *(
                self._places(each.spaces[attention.query].count, each.spaces[attention.key].count)
                for each in (self.target, self.source)
            ),
            strict=True,
        )
        return of[0], of[1], place[0][:, None] % (place[1].max() + 1) == place[1]

    def _places(self, heads: int, groups: int) -> tuple[Tensor, Tensor]:
        """(group, place in it) of every head."""
        per_group = heads // groups
        return torch.arange(heads) // per_group, torch.arange(heads) % per_group


def origin(source: Architecture, stack: LayerStack, layer: int, options: Any) -> LayerOrigin:
    """The layer that a target layer starts from. options: LiGO's."""
    before = next(each for each in source.stacks if each.name == stack.name)
    return in_pattern(partial(_origins, options), before, stack)[layer]


def _origins(options: Any, before: int, after: int) -> tuple[LayerOrigin, ...]:
    if options.width_init == "lossless":
        return Lemon().stack_layers(before, after, LEMON)
    return copies_of((stacked if options.depth_init == "stack" else repeated)(before, after))


def mixture(
    source: Architecture, target: Architecture, stack: LayerStack, param: ParamSpec, context: GrowthContext
) -> Tensor:
    """(layers of the target, of the source): the weights of a tensor's rows. lossless: 1 at the origin; 0 where a new
    layer must write nothing."""
    before = next(each.layers for each in source.stacks if each.name == stack.name)
    origins = [origin(source, stack, layer, context.options) for layer in range(stack.layers)]
    layers = torch.tensor([each.origin for each in origins], dtype=torch.long)
    weights = torch.eye(before, dtype=torch.float64)[layers]
    if context.options.width_init == "lossless":
        silent = target.adds_to_stream(param)
        return weights * torch.tensor([[float(not (silent and each.new))] for each in origins])
    generator = torch.Generator().manual_seed(derive(context.seed, "ligo", param.template or param.name))
    others = MOST * torch.rand(weights.shape, generator=generator, dtype=torch.float64)
    weights = torch.where(weights > 0, weights, others)
    return weights / weights.sum(1, keepdim=True)
