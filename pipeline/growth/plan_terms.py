"""Sums of terms in a plan's file: up to a few terms are written out one by one, each with its coefficient. Of a longer
sum the coefficients are a tensor, and what its terms take (layer, tensor, block, maps) is a list that is written once
for all sums over the same.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pipeline.growth.method import Block, GrownBlock, Term

Json = dict[str, Any]
FEW = 64
"""Terms that are written out."""


@dataclass(frozen=True)
class TermWriter:
    """store: puts a tensor aside, and gives the name under which it is found. sums: what the terms of long sums take,
    by name."""

    store: Callable[[Tensor], str]
    sums: dict[str, list[Json]] = field(default_factory=dict)
    _names: dict[tuple[Any, ...], str] = field(default_factory=dict)

    def terms(self, terms: tuple[Term, ...]) -> list[Json] | Json:
        """A sum as data."""
        if len(terms) <= FEW:
            return [_written(term) for term in terms]
        coefficients = torch.tensor([_number(term.coefficient) for term in terms], dtype=torch.float64)
        return {"sum": self._name(terms), "coefficients": self.store(coefficients)}

    def blocks(self, blocks: tuple[GrownBlock, ...]) -> list[Json]:
        """The blocks of a tensor as data."""
        return [
            {"place": astuple(each.place), "spaces": list(each.spaces), "terms": self.terms(each.terms)}
            for each in blocks
        ]

    def _name(self, terms: tuple[Term, ...]) -> str:
        key = tuple((term.layer, term.maps, term.template, term.block) for term in terms)
        if key not in self._names:
            self._names[key] = str(len(self._names))
            self.sums[self._names[key]] = [_written(term, coefficient=False) for term in terms]
        return self._names[key]


@dataclass(frozen=True)
class TermReader:
    """Reads what `TermWriter` wrote. tensor: gives a tensor by its name."""

    tensor: Callable[[str], Tensor]
    sums: dict[str, list[Json]]

    def terms(self, content: list[Json] | Json) -> tuple[Term, ...]:
        if isinstance(content, list):
            return tuple(_read(each, each["coefficient"]) for each in content)
        coefficients = self.tensor(content["coefficients"]).tolist()
        return tuple(map(_read, self.sums[content["sum"]], coefficients))

    def blocks(self, content: list[Json]) -> tuple[GrownBlock, ...]:
        return tuple(
            GrownBlock(Block(*each["place"]), tuple(each["spaces"]), self.terms(each["terms"])) for each in content
        )


def _written(term: Term, coefficient: bool = True) -> Json:
    """A term; what most terms lack is left out."""
    content: Json = {"layer": term.layer}
    content |= {"coefficient": _number(term.coefficient)} if coefficient else {}
    content |= {"maps": term.maps}
    content |= {"template": term.template} if term.template else {}
    return content | ({"block": astuple(term.block)} if term.block else {})


def _read(content: Json, coefficient: float) -> Term:
    block = Block(*content["block"]) if "block" in content else None
    return Term(content["layer"], float(coefficient), content["maps"], content.get("template"), block)


def _number(coefficient: float | Tensor) -> float:
    return coefficient.item() if isinstance(coefficient, Tensor) else coefficient
