"""Deciding, as pure data: which target tensor comes from which source tensors, and what the config must change.

No tensor is read here. A plan is printed, saved as plan.json and then carried out by `growth.engine`.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from pipeline.axes import Param, Space, Table
from pipeline.errors import UserError
from pipeline.growth import maps
from pipeline.growth.maps import SpaceMap


@dataclass(frozen=True)
class Options:
    """What a user chooses. noise: the scale s of N = s * (projected fresh initialisation)."""

    method: str = "lemon"
    depth: Literal["zero", "cancel"] = "zero"
    placement: Literal["top", "even"] = "even"
    noise: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Layer:
    """Where a target layer comes from; a `new` one adds nothing to the residual stream at step 0."""

    source: int
    new: bool


@dataclass(frozen=True)
class Row:
    """One target tensor: W* = sum_j c_j E W_j R^T + N (growth-math, equation 1).

    sources: (source tensor, c_j); none when the source term is dropped. noise: whether N is on.
    """

    target: str
    sources: tuple[tuple[str, float], ...]
    shape: tuple[int, ...]
    noise: bool
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """The whole growth. config_change: what the target's config must hold to be lossless."""

    options: Options
    layers: tuple[Layer, ...]
    rows: tuple[Row, ...]
    config_change: dict[str, float]
    sizes: dict[str, tuple[int, int]]
    lossless: bool

    def as_json(self) -> dict:
        return asdict(self)


def place(source: int, target: int, placement: str) -> tuple[Layer, ...]:
    """Which layer each target layer comes from; new layers stand directly behind their origin.

    `top` doubles the topmost `target - source` layers (LEMON's released recipe); `even` spreads them.
    Raises UserError when `top` would need more than a doubling.
    """
    if placement == "top":
        if target > 2 * source:
            raise UserError(f"placement 'top' at most doubles the layers, {source} to {target} is more; use placement 'even'")
        origins = [layer for layer in range(source) for _ in range(1 + (layer >= 2 * source - target))]
    else:
        origins = [index * source // target for index in range(target)]
    return tuple(Layer(origin, index > 0 and origins[index - 1] == origin) for index, origin in enumerate(origins))


def make(source: Table, target: Table, eps: float, choose: dict[str, SpaceMap], options: Options, lossless: bool) -> Plan:
    """The plan for growing `source` into `target` with the maps of a method. `eps`: the source's norm epsilon."""
    layers = place(source.layers, target.layers, options.placement)
    rows = tuple(_row(row, source, target, layers, choose, options) for row in target.rows())
    sizes = {name: (source.spaces[name].size, space.size) for name, space in target.spaces.items() if not space.follows}
    change = {target.eps: eps * _eta_of_norms(source, target) ** 2}
    plan = Plan(options, layers, rows, change, {**sizes, "layers": (source.layers, target.layers)}, lossless)
    _require_sources(plan, source)
    _require_a_free_part(plan)
    return plan


def _row(row: Param, source: Table, target: Table, layers: tuple[Layer, ...], choose: dict[str, SpaceMap], options: Options) -> Row:
    layer = layers[row.layer] if row.layer is not None else None
    origin = row.template if layer is None else row.template.replace("{i}", str(layer.source))
    free = reading_axis(row, choose) is not None and options.noise > 0
    shape = target.shape(row)
    if layer is None or not layer.new or not _writes_stream(row, target):
        return Row(row.name, ((origin, 1.0),), shape, free)
    if options.depth == "cancel" and free:
        return Row(row.name, (), shape, True, "new layer: fan-outs of copies cancel")
    short = options.depth == "cancel" and len(row.axes) > 1
    return Row(row.name, (), shape, False, "new layer: zero" + (" (its input space did not grow)" if short else ""))


def reading_axis(row: Param, choose: dict[str, SpaceMap]) -> int | None:
    """The axis along which N may live: the one that reads a space that grew."""
    for axis, label in enumerate(row.axes):
        if label.role == "reads" and choose[label.space].free and row.use == "matmul":
            return axis
    return None


def _writes_stream(row: Param, target: Table) -> bool:
    return any(target.spaces[axis.space].kind == "stream" and axis.role == "writes" for axis in row.axes)


def _streams(table: Table) -> list[Space]:
    return [space for space in table.spaces.values() if space.kind == "stream"]


def _eta_of_norms(source: Table, target: Table) -> float:
    """All norms of a table read the stream or a space of its size, so one eta serves them."""
    stream = _streams(target)[0]
    return maps.eta(source.spaces[stream.name].size, stream.size)


def _require_sources(plan: Plan, source: Table) -> None:
    held = {row.name for row in source.rows()}
    missing = [name for row in plan.rows for name, _ in row.sources if name not in held]
    if missing:
        raise UserError(f"the target has {len(missing)} tensors that the source lacks, such as '{missing[0]}'; give the target the source's options")


def _require_a_free_part(plan: Plan) -> None:
    new = [row for row in plan.rows if row.note]
    if plan.options.depth == "cancel" and new and not any(row.noise for row in new):
        raise UserError("depth 'cancel' needs a tensor with a free part, and no input space grows (or noise is 0); use depth 'zero'")
