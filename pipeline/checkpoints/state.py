"""A model's state, opened lazily: names, shapes, where each tensor is, optimizer slots, provenance.

Every reader of a checkpoint gives a `State`, every writer takes one, the growth engine maps one to another.
Tensor names are published names; a tensor is touched only when it is opened.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor


@dataclass(frozen=True)
class LazyTensor:
    """One tensor that has not been read yet. window: reads elements start to stop, flat, where that needs less than all."""

    shape: tuple[int, ...]
    open: Callable[[], Tensor]
    window: Callable[[int, int], Tensor] | None = None

    def part(self, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of the flat tensor."""
        return self.window(start, stop) if self.window else self.open().reshape(-1)[start:stop]

    def rows(self, rows: range) -> Tensor:
        """Rows along the first axis."""
        width = math.prod(self.shape[1:])
        return self.part(rows.start * width, rows.stop * width).view(len(rows), *self.shape[1:])

    def parts(self, start: int, stop: int, most: int) -> Iterator[Tensor]:
        """The same in flat pieces of at most `most` elements; where windows can be read, only one is held at a time."""
        if not self.window:
            yield from self.part(start, stop).split(most)
            return
        for begin in range(start, stop, most):
            yield self.window(begin, min(begin + most, stop))


@dataclass(frozen=True)
class Group:
    """One optimizer group: parameter names in flat order, and its hyper-parameters (lr, weight_decay, …)."""

    names: tuple[str, ...]
    hyper: dict = field(default_factory=dict)


@dataclass(frozen=True)
class State:
    """A checkpoint's content.

    tensors: every parameter (tied ones once, under their owner's name). frozen: those that no optimizer group has.
    buffers: what the module keeps beside parameters. slots: optimizer state by slot name
    (`exp_avg`, `exp_avg_sq`, …) and parameter. steps: optimizer step of each parameter. config: the content of the
    model's config.json. aliases: tied name -> owner. provenance: where it came from and the FLOPs spent on it so far (or "unknown").
    """

    tensors: dict[str, LazyTensor]
    config: dict | None = None
    slots: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    aliases: dict[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    buffers: dict[str, LazyTensor] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)

    def renamed(self, names: dict[str, str]) -> "State":
        """The same state under other names; a name not in `names` stays."""

        def rename(entries: dict) -> dict:
            return {names.get(name, name): entry for name, entry in entries.items()}

        groups = tuple(Group(tuple(names.get(n, n) for n in g.names), g.hyper) for g in self.groups)
        slots = {slot: rename(entries) for slot, entries in self.slots.items()}
        aliases = {names.get(a, a): names.get(o, o) for a, o in self.aliases.items()}
        frozen = tuple(names.get(name, name) for name in self.frozen)
        return replace(
            self,
            tensors=rename(self.tensors),
            frozen=frozen,
            slots=slots,
            steps=rename(self.steps),
            groups=groups,
            aliases=aliases,
        )


def by_rows(shape: tuple[int, ...], make: Callable[[range], Tensor]) -> LazyTensor:
    """An entry that is computed when it is asked for, and only the rows (along its first axis) that are asked for."""
    width = math.prod(shape[1:])

    def window(start: int, stop: int) -> Tensor:
        rows = range(start // width, -(-stop // width))
        return make(rows).reshape(-1)[start - rows.start * width : stop - rows.start * width]

    return LazyTensor(shape, lambda: make(range(shape[0])), window)


def in_memory(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, LazyTensor]:
    """Entries for tensors that are already here."""
    return {name: LazyTensor(tuple(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in tensors}
