"""Comparing two checkpoints number by number, whatever their layouts, stages and world sizes: `lemon diff A B`. Where
both have the config of a supported model, what decides its function is compared too.

One tensor of each is open at a time. Equal means the same bits: -0 differs from 0, and a NaN equals the same NaN.
"""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from pipeline import checkpoints
from pipeline.checkpoints.layouts import carried
from pipeline.checkpoints.layouts.deepspeed_pickles import DynamicLossScaler, LossScaler
from pipeline.checkpoints.serialization.byte_stream import CHUNK
from pipeline.checkpoints.state import State
from pipeline.checkpoints.tensors import LazyTensor
from pipeline.errors import UserError

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
NARROW = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
"""Types that torch does not compute with; float32 holds each of their numbers."""
MODULES = ("weights", "buffers")
"""The parts that are no optimizer's."""
WORST = 5
LONGEST = 60
"""Characters of a value that is shown."""
OF_THE_WRITER = frozenset({"ds_version", "ds_config", "clip_grad"})
"""Which DeepSpeed wrote the files, and how it was set up."""
Shape = tuple[int, ...]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Gap:
    """A tensor that differs: how many of its numbers, by how much at most (infinite where only one side is finite),
    and that relative to the largest number of either side."""

    name: str
    numbers: int
    of: int
    largest: float
    relative: float


@dataclass
class Part:
    """Tensors of one kind: the weights, the buffers, or one slot of the optimizer. only: names that one side alone
    has. dtypes: types that count as a difference, whatever the numbers."""

    only: tuple[list[str], list[str]] = field(default_factory=lambda: ([], []))
    shapes: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    dtypes: dict[str, tuple[str, str]] = field(default_factory=dict)
    equal: int = 0
    gaps: list[Gap] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return not (self.only[0] or self.only[1] or self.shapes or self.dtypes or self.gaps)

    def as_json(self) -> Facts:
        """Counts, what is not comparable by name, and the worst tensors."""
        largest, relative = (
            max((getattr(gap, key) for gap in self.gaps), default=0.0) for key in ("largest", "relative")
        )
        worst = sorted(self.gaps, key=lambda gap: (-gap.relative, -gap.numbers / gap.of, gap.name))[:WORST]
        return {
            "equal": self.equal,
            "different": len(self.gaps),
            "only_a": self.only[0],
            "only_b": self.only[1],
            "shapes": {name: [list(shape) for shape in shapes] for name, shapes in self.shapes.items()},
            "dtypes": {name: list(types) for name, types in self.dtypes.items()},
            "largest": _number(largest),
            "relative": _number(relative),
            "worst": [
                {**asdict(gap), "largest": _number(gap.largest), "relative": _number(gap.relative)} for gap in worst
            ],
        }


def _number(value: float) -> float | str:
    """JSON has no infinity."""
    return value if math.isfinite(value) else "inf"


@dataclass(frozen=True)
class Difference:
    """step: of either side, where they differ. steps and hyper: what differs there, with the number of parameters that
    it holds for. besides: what differs in tied names, frozen parameters, and what the engine keeps. published: whether
    tensors were brought together by published names. bare: the sides that hold no optimizer although the other does.
    left_behind: tensors of either side that are no part of its model: they are not compared. config: what decides the
    function of the same weights and differs, where both sides have a config."""

    places: tuple[Path, Path]
    published: bool
    bare: list[str]
    parts: dict[str, Part]
    step: tuple[int | None, int | None] | None
    steps: list[Facts]
    hyper: list[Facts]
    besides: list[Facts] = field(default_factory=list)
    left_behind: tuple[list[str], list[str]] = ([], [])
    config: list[Facts] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        changed = self.step or self.steps or self.hyper or self.besides or self.config
        return all(part.same for part in self.parts.values()) and not changed

    def as_json(self) -> Facts:
        return {
            "a": str(self.places[0]),
            "b": str(self.places[1]),
            "equal": self.equal,
            "names": "published" if self.published else "of the files",
            "without_optimizer": self.bare,
            "tensors": {kind: part.as_json() for kind, part in self.parts.items()},
            "step": list(self.step) if self.step else None,
            "steps": self.steps,
            "hyper": self.hyper,
            "besides": self.besides,
            "config": self.config,
            "left_behind_a": self.left_behind[0],
            "left_behind_b": self.left_behind[1],
        }


@dataclass(frozen=True)
class Side:
    """What is compared of one checkpoint. tensors: by kind (weights, buffers, a slot) and name. step: None of one
    without an optimizer. exact: names of buffers and frozen parameters, whose type counts. besides: what is tied,
    frozen, or kept by the engine, by name. config: what decides the model's function, by name."""

    tensors: dict[str, dict[str, LazyTensor]]
    step: int | None = None
    steps: dict[str, float] = field(default_factory=dict)
    hyper: dict[str, Facts] = field(default_factory=dict)
    left_behind: tuple[str, ...] = ()
    exact: frozenset[str] = frozenset()
    besides: dict[str, object] = field(default_factory=dict)
    config: dict[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, place: Path, published: bool, weights_only: bool) -> "Side":
        """Without published names buffers count as weights: Hugging Face files do not tell them apart."""
        state, config = _read(place) if published else (checkpoints.raw(place), {})
        weights = {"weights": state.tensors if published else {**state.tensors, **state.buffers}}
        exact = frozenset((*state.buffers, *state.frozen))
        if weights_only:
            return cls(weights, left_behind=state.left_behind, exact=exact, config=config)
        buffers = {"buffers": state.buffers} if published and state.buffers else {}
        slots = {slot: tensors for slot, tensors in state.slots.items() if tensors}
        hyper = {name: _plain_values(group.hyper) for group in state.groups for name in group.names}
        step = state.step if state.groups else None
        tensors = {**weights, **buffers, **slots}
        return cls(tensors, step, state.steps, hyper, state.left_behind, exact, _besides(state), config)

    def begun(self, other: "Side") -> "Side":
        """Without the zeros that an optimizer starts with, where the other side has no such state yet, which is made at
        the first step or before."""
        tensors = {
            kind: {name: t for name, t in held.items() if kind in MODULES or not self._fresh(kind, name, t, other)}
            for kind, held in self.tensors.items()
        }
        return replace(self, tensors={kind: held for kind, held in tensors.items() if held or kind in MODULES})

    def _fresh(self, slot: str, name: str, tensor: LazyTensor, other: "Side") -> bool:
        if name in other.tensors.get(slot, {}) or name not in other.hyper or self.steps.get(name):
            return False
        damped = self.hyper.get(name, {}).get("dampening")  # a momentum then starts with the first gradient
        return not damped and not any(bool(part.any()) for part in tensor.chunks(0, tensor.numel, CHUNK))


def compare(a: Path, b: Path, weights_only: bool = False) -> Difference:
    """Compare two checkpoints. Raises UserError for what is no checkpoint, and for two that have no name in common."""
    places = checkpoints.locate(a), checkpoints.locate(b)
    published = all(checkpoints.holds_known_model(place) for place in places)
    one, other = (Side.of(place, published, weights_only) for place in places)
    if not set(one.tensors["weights"]) & set(other.tensors["weights"]):
        cause = (
            "they hold different models"
            if published
            else "names of two layouts come together where both folders hold the "
            f"{checkpoints.CONFIG} of a supported model"
        )
        raise UserError(f"{places[0]} and {places[1]} have no tensor name in common; {cause}")
    one, other = one.begun(other), other.begun(one)
    kinds = {**one.tensors, **other.tensors}
    exact = one.exact & other.exact
    parts = {kind: _part(one.tensors.get(kind, {}), other.tensors.get(kind, {}), exact) for kind in kinds}
    pairs = (("A", one, other), ("B", other, one))
    bare = [name for name, mine, theirs in pairs if theirs.hyper and not mine.hyper]
    both = one.step is not None and other.step is not None
    step = (one.step, other.step) if both and one.step != other.step else None
    steps, hyper = _changes(one.steps, other.steps), _hyper_changes(one.hyper, other.hyper)
    besides = _besides_changes(one.besides, other.besides) if one.hyper and other.hyper else []
    left_behind = list(one.left_behind), list(other.left_behind)
    config = _config_changes(one.config, other.config)
    return Difference(places, published, bare, parts, step, steps, hyper, besides, left_behind, config)


def _read(place: Path) -> tuple[State, Facts]:
    """The state in published names, and what its config says of the function."""
    from pipeline import models

    state, config = checkpoints.read(place)
    return state, models.function_keys(config)


def _besides(state: State) -> dict[str, object]:
    """What is no tensor of the model. What an engine starts with counts as nothing: files may name it or not."""
    kept = {**state.engine, **state.scaling}
    told = {key: value for key, value in kept.items() if key not in OF_THE_WRITER and not _unset(value)}
    tied = {f"tied {name}": owner for name, owner in state.aliases.items()}
    scalars = {f"{key} {name}": value for key, held in state.scalars.items() for name, value in held.items()}
    return {**told, **tied, **scalars, **dict.fromkeys((f"frozen {name}" for name in state.frozen), True)}


def _unset(value: object) -> bool:
    if isinstance(value, LossScaler):
        return not isinstance(value, DynamicLossScaler) and vars(value).get("cur_scale") == 1
    return value is None or value is False or (isinstance(value, int | dict) and not value)


def _besides_changes(one: dict[str, object], other: dict[str, object]) -> list[Facts]:
    sides = [(name, one.get(name), other.get(name)) for name in {**one, **other}]
    return [{"key": name, "a": _said(a), "b": _said(b)} for name, a, b in sides if not carried.same(a, b)]


def _config_changes(one: dict[str, object], other: dict[str, object]) -> list[Facts]:
    sides = [(key, one.get(key), other.get(key)) for key in {**one, **other}]
    return [{"key": key, "a": _said(a), "b": _said(b)} for key, a, b in sides if a != b]


def _said(value: object) -> str:
    """A value in one short line."""
    if isinstance(value, LossScaler):
        return f"loss scale {vars(value).get('cur_scale')}"
    text = "none" if value is None else " ".join(str(value).split())
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def _plain_values(values: Facts) -> Facts:
    return {key: _plain(value) for key, value in values.items()}


def _plain(value: object) -> object:
    """Hyper-parameters that compare by their values: layouts may keep lists or tensors where others keep tuples or
    numbers."""
    if isinstance(value, dict):
        return _plain_values(value)
    if isinstance(value, Tensor):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def _part(one: dict[str, LazyTensor], other: dict[str, LazyTensor], exact: Collection[str]) -> Part:
    part = Part(([n for n in one if n not in other], [n for n in other if n not in one]))
    for name in (name for name in one if name in other):
        if one[name].shape != other[name].shape:
            part.shapes[name] = one[name].shape, other[name].shape
        elif not _comparable(types := (one[name].dtype, other[name].dtype), name in exact):
            part.dtypes[name] = str(types[0]).removeprefix("torch."), str(types[1]).removeprefix("torch.")
        elif gap := _gap(name, one[name].tensor(), other[name].tensor()):
            part.gaps.append(gap)
        else:
            part.equal += 1
    return part


def _comparable(types: tuple[torch.dtype, torch.dtype], exact: bool) -> bool:
    """Whether one type holds the numbers of both, and may."""
    return types[0] == types[1] or (not exact and all(dtype.is_floating_point for dtype in types))


def _gap(name: str, a: Tensor, b: Tensor) -> Gap | None:
    """How two tensors of one shape differ; None when they do not. Of two types, in the type that holds the numbers of
    both."""
    a, b = (tensor.float() if tensor.dtype in NARROW else tensor for tensor in (a, b))
    a, b = (torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in (a, b))
    dtype, numbers, largest = torch.promote_types(a.dtype, b.dtype), 0, 0.0
    for one, other in zip(a.reshape(-1).split(CHUNK), b.reshape(-1).split(CHUNK), strict=True):
        one, other = one.to(dtype), other.to(dtype)
        apart = one.view(BITS[dtype.itemsize]) != other.view(BITS[dtype.itemsize])
        if changed := int(apart.sum()):
            gaps = (one[apart].double() - other[apart].double()).abs().nan_to_num(nan=math.inf, posinf=math.inf)
            numbers, largest = numbers + changed, max(largest, gaps.max().item())
    if not numbers:
        return None
    peak = max(_peak(a), _peak(b))
    return Gap(name, numbers, a.numel(), largest, largest / peak if peak else math.inf if largest else 0.0)


def _peak(tensor: Tensor) -> float:
    """The largest finite number, without its sign."""
    parts = (part[part.isfinite()].double().abs() for part in tensor.reshape(-1).split(CHUNK))
    return max((part.max().item() for part in parts if part.numel()), default=0.0)


def _changes(one: dict[str, float], other: dict[str, float]) -> list[Facts]:
    """Values that differ, with the number of parameters they differ for; None where a side has none."""
    names = {**one, **other}
    pairs = Counter((one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name))
    return [{"a": a, "b": b, "parameters": count} for (a, b), count in pairs.items()]


def _hyper_changes(one: dict[str, Facts], other: dict[str, Facts]) -> list[Facts]:
    """The same for every hyper-parameter; a parameter that is in no optimizer group has none."""
    rows: dict[str, Facts] = {}
    for name in {**one, **other}:
        sides = one.get(name, {}), other.get(name, {})
        for key in {**sides[0], **sides[1]}:
            a, b = (side.get(key, "none") for side in sides)
            if a != b:
                change = {"key": key, "a": a, "b": b, "parameters": 0, "first": name}
                row = rows.setdefault(repr((key, a, b)), change)
                row["parameters"] += 1
    return list(rows.values())


def show(difference: Difference, console: Console) -> None:
    """Print what differs, and the verdict."""
    sheet = Table("compared", "bit-equal", "different", "largest difference", "relative", box=None, pad_edge=False)
    for kind, part in difference.parts.items():
        facts = part.as_json()
        sheet.add_row(
            kind,
            str(part.equal),
            str(len(part.gaps)),
            f"{float(facts['largest']):.3g}",
            f"{float(facts['relative']):.3g}",
        )
    console.print(sheet)
    lines = [line for kind, part in difference.parts.items() for line in _part_lines(kind, part)] + _optimizer_lines(
        difference
    )
    lines += [f"config       {row['key']} {row['a']} -> {row['b']}" for row in difference.config]
    if not difference.published and any(names for part in difference.parts.values() for names in part.only):
        lines.append(
            f"names        as in the files: not both folders hold the {checkpoints.CONFIG} of a supported model"
        )
    for side, names in zip("AB", difference.left_behind, strict=True):
        if names:
            lines.append(f"not compared {len(names)} tensors of {side} that are no part of its model: {_listed(names)}")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print(
        f"verdict      {'[green]bit-equal[/green]' if difference.equal else '[red]different[/red]'}", highlight=False
    )


def _part_lines(kind: str, part: Part) -> list[str]:
    only = [
        f"{kind}: {len(names)} only in {side}: {_listed(names)}"
        for side, names in zip("AB", part.only, strict=True)
        if names
    ]
    shapes = [
        f"{kind}: {len(part.shapes)} have other shapes, such as '{name}': {a} in A, {b} in B"
        for name, (a, b) in list(part.shapes.items())[:1]
    ]
    dtypes = [
        f"{kind}: {len(part.dtypes)} have other types, such as '{name}': {a} in A, {b} in B"
        for name, (a, b) in list(part.dtypes.items())[:1]
    ]
    worst = [
        f"{kind}: '{gap['name']}' differs in {gap['numbers']} of {gap['of']} numbers, "
        f"by at most {float(gap['largest']):.3g} (relative {float(gap['relative']):.3g})"
        for gap in part.as_json()["worst"]
    ]
    return only + shapes + dtypes + worst


def _listed(names: list[str]) -> str:
    return ", ".join(names[:WORST]) + (", …" if len(names) > WORST else "")


def _optimizer_lines(difference: Difference) -> list[str]:
    if difference.bare:
        return [f"optimizer    {difference.bare[0]} holds none; --weights-only leaves it out of the comparison"]
    step = [f"step         {difference.step[0]} -> {difference.step[1]} of the checkpoint"] if difference.step else []
    steps = [f"step         {row['a']} -> {row['b']} for {row['parameters']} parameters" for row in difference.steps]
    return (
        step
        + steps
        + [
            f"{row['key']:<12} {row['a']} -> {row['b']} for {row['parameters']} parameters, such as '{row['first']}'"
            for row in difference.hyper
        ]
        + [f"{row['key']:<12} {row['a']} -> {row['b']}" for row in difference.besides]
    )
