"""Into which groups an optimizer sorts the parameters of a model, and how each group is trained."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from pydantic import Field

from pipeline.records.strict import Strict

ParameterKind = Literal["hidden", "embeddings", "head", "vectors"]
"""hidden: matrices inside the layers. embeddings: tables, tokens and patch projections in front of them, a tied head
too. head: matrices behind them. vectors: norms, biases, layer scales."""
KINDS: tuple[ParameterKind, ...] = get_args(ParameterKind)


class RateFactors(Strict):
    """Factors on the schedule's rate, by kind of parameter."""

    hidden: float = Field(1.0, gt=0, description="matrices inside the layers")
    embeddings: float = Field(1.0, gt=0, description="tables and patch projections, a tied head too")
    head: float = Field(1.0, gt=0, description="matrices behind the layers")
    vectors: float = Field(1.0, gt=0, description="norms, biases, layer scales")

    def of(self, kind: ParameterKind) -> float:
        factor: float = getattr(self, kind)
        return factor


class MuonRateFactors(RateFactors):
    """The same where Muon trains the hidden matrices: its rate is usually some 20 times AdamW's."""

    hidden: float = Field(20.0, gt=0, description="Muon's, of matrices inside the layers")


@dataclass(frozen=True)
class GroupRule:
    """How the parameters of one group are trained. rate: the factor on the schedule's. muon: by Muon, in an optimizer
    that trains others by AdamW."""

    decayed: bool
    rate: float = 1.0
    muon: bool = False


Name = TypeVar("Name")


def grouped(rules: Iterable[tuple[Name, GroupRule]]) -> dict[GroupRule, list[Name]]:
    """What is trained by the same rule, in its order. The groups follow their order here: decayed ones first, and among
    these by the first of their members."""
    groups: dict[GroupRule, list[Name]] = {}
    for name, rule in rules:
        groups.setdefault(rule, []).append(name)
    return {rule: groups[rule] for rule in sorted(groups, key=lambda rule: not rule.decayed)}
