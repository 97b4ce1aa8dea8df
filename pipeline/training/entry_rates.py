"""Updates of the entries that growths have added: their own rate, and AdamW's bias correction by their own steps.

The optimizer updates all entries of a tensor alike, with one rate and one count t of its steps. Of an entry that has
seen k of them the update is too large: its moments started at zero behind the growth, so that AdamW should divide them
by 1 - beta^k, and divides by 1 - beta^t. With m and v the moments, both updates are

    u_t = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps),      u_k = m / (1 - b1^k) / (sqrt(v / (1 - b2^k)) + eps),

and u_k = c u_t with c = [sqrt(1 - b2^k) / (1 - b1^k)] / [sqrt(1 - b2^t) / (1 - b1^t)], but for eps: the new entries
have sqrt((1 - b2^t) / (1 - b2^k)) times as much of it, which makes updates by tiny gradients smaller.

So an entry is put aside as the optimizer's decay alone would leave it, and what the optimizer has added besides is
multiplied by c and by the factor f of its rate; its decay is multiplied by f before the step. Only differences are
multiplied: what does not move stays as it is, to the bit. That is a pass before the step (two where f changes a decay)
and one behind it (two where a tensor holds old entries too), over the tensors alone that hold new ones; none once c and
f are 1.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from torch import Tensor, nn
from torch.optim import Optimizer

from pipeline.growth import new_entries
from pipeline.growth.new_entries import NewEntries
from pipeline.optim.optimizers import Hyper, OptimizerSpec
from pipeline.optim.rewarm import Ramp
from pipeline.training import fragments

NEGLIGIBLE = 2.0**-26
"""How far from 1 a factor may be that is taken for 1: an update that is multiplied by it is the same in float32."""


@dataclass(eq=False)
class Span:
    """Entries of one of the optimizer's tensors among which there are new ones. new: which, (stop - start,) bool; None:
    all. growth: the number of the one that has added them. aside: where they are put aside, once that was needed."""

    start: int
    stop: int
    new: Tensor | None
    growth: int
    aside: Tensor | None = None

    def of(self, held: Tensor) -> Tensor:
        return held.view(-1)[self.start : self.stop]

    def put_aside(self, held: Tensor, factors: "Factors") -> None:
        """What the entries would be if the optimizer only decayed them, the new ones by their own rate."""
        entries = self.of(held)
        self.aside = torch.empty_like(entries) if self.aside is None else self.aside
        if factors.decay and self.new is None:
            entries.add_(entries, alpha=factors.decay)
        if factors.decay and self.new is not None:
            torch.add(entries, entries, alpha=factors.decay, out=self.aside)
            torch.where(self.new, self.aside, entries, out=entries)
        torch.add(entries, entries, alpha=-factors.decayed, out=self.aside)

    def multiply(self, held: Tensor, factor: float) -> None:
        """Multiply what the optimizer has added to the new entries since they were put aside."""
        entries, aside = self.of(held), self.aside
        assert aside is not None, "put aside before the step"
        if self.new is None:
            torch.lerp(aside, entries, factor, out=entries)
        else:
            torch.lerp(aside, entries, factor, out=aside)
            torch.where(self.new, aside, entries, out=entries)


@dataclass(frozen=True)
class Factors:
    """Of one step and one group, for the entries of one growth. update: on what the optimizer adds besides its decay.
    decay: the share of themselves that they lose before the step, for their decay to be that of their rate, as a
    negative number. decayed: the share that the optimizer's decay takes."""

    update: float
    decay: float
    decayed: float

    @classmethod
    def of(cls, rate: float, seen: float, decayed: float) -> "Factors":
        """rate: f; seen: c; decayed: rate * decay of the group."""
        return cls(rate * seen, -(rate - 1.0) * decayed / (1.0 - decayed), decayed)

    @property
    def none(self) -> bool:
        return max(abs(self.update - 1), abs(self.decay)) < NEGLIGIBLE


class EntryRates:
    """Stands around the step of the optimizer inside a DeepSpeed engine that has loaded its checkpoint.

    growths: through which it has come. ramp: of the rate of the last one's entries. named: the module's parameters by
    their published names.
    """

    def __init__(
        self,
        engine: DeepSpeedEngine,
        optimizer: OptimizerSpec,
        growths: Sequence[NewEntries],
        ramp: Ramp,
        named: Mapping[str, nn.Parameter],
    ):
        self._engine, self._optimizer, self._growths, self._ramp = engine, optimizer, growths, ramp
        self._spans = self._found(named)
        inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
        self._counted = {held: _counted(inner.state.get(held, {})) for held in self._spans}
        self._behind: list[tuple[Tensor, Span, float]] = []
        inner.register_step_pre_hook(self._keep)
        inner.register_step_post_hook(self._correct)

    def _found(self, named: Mapping[str, nn.Parameter]) -> dict[Tensor, list[Span]]:
        """By the optimizer's tensors."""
        spans: dict[Tensor, list[Span]] = {}
        for name in dict.fromkeys(name for growth in self._growths for name in growth.kept):
            for each in fragments.of_parameter(self._engine, named[name]):
                for number, mask in new_entries.by_growth(self._growths, name, _shape(named[name])):
                    spans.setdefault(each.held, []).extend(_spans(each, mask, number))
        return spans

    @torch.no_grad()
    def _keep(self, optimizer: Optimizer, arguments: Any, named: Any) -> None:
        """Before the step."""
        self._behind = []
        for group, held in _tensors(optimizer, self._spans):
            self._counted[held] += 1
            for span in self._spans[held]:
                factors = self._factors(group, held, span.growth)
                if factors.none:
                    span.aside = None
                else:
                    span.put_aside(held, factors)
                    self._behind.append((held, span, factors.update))

    @torch.no_grad()
    def _correct(self, optimizer: Optimizer, arguments: Any, named: Any) -> None:
        """Behind the step."""
        for held, span, factor in self._behind:
            span.multiply(held, factor)
        self._behind = []

    def _factors(self, group: Hyper, held: Tensor, number: int) -> Factors:
        growth, last = self._growths[number], number == len(self._growths) - 1
        rate = self._ramp.at(self._engine.global_steps + 1 - growth.since) if last else 1.0
        counted, seen = self._counted[held], 1.0
        if growth.counted is not None:
            seen = self._optimizer.first_updates(group, counted - growth.counted, counted)
        decayed = group["lr"] * group["weight_decay"] if self._optimizer.decoupled else 0.0
        return Factors.of(rate, seen, decayed)


def _tensors(optimizer: Optimizer, spans: Mapping[Tensor, Any]) -> Iterable[tuple[Hyper, Tensor]]:
    """(group, tensor) of those that the step updates and that hold new entries."""
    return [
        (group, held)
        for group in optimizer.param_groups
        for held in group["params"]
        if held in spans and held.grad is not None
    ]


def _counted(state: Mapping[str, Any]) -> float:
    return float(state.get("step", 0))


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter, of which ZeRO-3 leaves a rank nothing."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _spans(fragment: fragments.Fragment, mask: Tensor, number: int) -> Iterator[Span]:
    """Of a parameter's entries that a growth has added, as far as this rank has any."""
    new = mask.flatten()[fragment.begin : fragment.begin + fragment.length]
    if new.any():
        own = None if new.all() else new.clone().to(fragment.held.device)
        yield Span(fragment.start, fragment.start + fragment.length, own, number)
