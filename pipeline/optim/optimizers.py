"""The optimizers that this pipeline trains with, reshards and grows: one specification each.

A specification says how torch builds the optimizer, which hyper-parameters its groups have, and which state it keeps
for every parameter. Readers, writers and growth ask it; nothing else names a slot. To add one: a class, and its line
in `OPTIMIZERS` and `Optimizer`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.optim.parameter_groups import GroupRule, ParameterKind, RateFactors
from pipeline.records.strict import Strict

if TYPE_CHECKING:
    import torch

Hyper = Mapping[str, Any]
"""Hyper-parameters of one optimizer group, as torch keeps them: lr, weight_decay, …"""
Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Slot:
    """One tensor that the optimizer keeps for every parameter, in its shape.

    power: it transforms as this power of a gradient (1: a mean of gradients, 2: a mean of squared gradients).
    """

    name: str
    power: Literal[1, 2]


class OptimizerSpec(Strict):
    """What every specification has. keeps_step: whether torch counts the steps of every parameter in its state.
    fused_on: the types of devices on which torch computes all of an update in one kernel."""

    keeps_step: ClassVar[bool]
    fused_on: ClassVar[frozenset[str]] = frozenset()

    kind: str
    weight_decay: float = Field(default=0.01, ge=0, description="of matrices; norms and biases are not decayed")
    clip: float = Field(default=1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    rates: RateFactors = Field(RateFactors(), description="factors on the schedule's rate, by kind of parameter")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The optimizer's state slots, in torch's order."""
        raise NotImplementedError

    def rule(self, kind: ParameterKind, decayed: bool) -> GroupRule:
        """How parameters of a kind, of those that are decayed or not, are trained."""
        return GroupRule(decayed, self.rates.of(kind))

    def hyper(self, rule: GroupRule) -> dict[str, Any]:
        """The hyper-parameters of a group but for its rate, by torch's names."""
        raise NotImplementedError

    def continues(self, other: OptimizerSpec) -> bool:
        """Whether it can go on from the state that `other` has left: of the same kind, with the same slots."""
        return self.kind == other.kind and self.slots == other.slots

    def build(
        self, groups: Iterable[dict[str, Any]], lr: float = 0.0, fused: bool | None = None
    ) -> torch.optim.Optimizer:
        """torch's optimizer over `groups` ("params", and hyper-parameters that differ from the specification's). fused:
        in one kernel, as `fused_on` says where; None: as torch chooses."""
        raise NotImplementedError

    @classmethod
    def recognise(cls, slots: Collection[str], hyper: Hyper) -> Self | None:
        """The specification of a checkpoint with these slots (none before the first step) and a group's
        hyper-parameters; None when the optimizer is another one."""
        raise NotImplementedError


class AdamW(OptimizerSpec):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""

    keeps_step: ClassVar[bool] = True
    fused_on: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: float = Field(default=1e-8, ge=0)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return Slot("exp_avg", 1), Slot("exp_avg_sq", 2)

    def hyper(self, rule: GroupRule) -> dict[str, Any]:
        return {"weight_decay": self.weight_decay if rule.decayed else 0.0, "betas": self.betas, "eps": self.eps}

    def build(
        self, groups: Iterable[dict[str, Any]], lr: float = 0.0, fused: bool | None = None
    ) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(
            groups, lr=lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )

    @classmethod
    def recognise(cls, slots: Collection[str], hyper: Hyper) -> Self | None:
        return _recognised(cls, slots, hyper, ("weight_decay", "betas", "eps"), signature="betas")


class SGD(OptimizerSpec):
    """Stochastic gradient descent with momentum; torch keeps no step count for it."""

    keeps_step: ClassVar[bool] = False

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, ge=0)
    nesterov: bool = False

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (Slot("momentum_buffer", 1),) if self.momentum else ()

    def hyper(self, rule: GroupRule) -> dict[str, Any]:
        return {
            "weight_decay": self.weight_decay if rule.decayed else 0.0,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
        }

    def build(
        self, groups: Iterable[dict[str, Any]], lr: float = 0.0, fused: bool | None = None
    ) -> torch.optim.Optimizer:
        import torch

        return torch.optim.SGD(
            groups, lr=lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay
        )

    @classmethod
    def recognise(cls, slots: Collection[str], hyper: Hyper) -> Self | None:
        return _recognised(cls, slots, hyper, ("weight_decay", "momentum", "nesterov"), signature="momentum")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("'nesterov' needs a momentum above 0")
        return self


OPTIMIZERS: dict[str, type[OptimizerSpec]] = {"adamw": AdamW, "sgd": SGD}


def _kind(value: object) -> object:
    """The kind that a config names; AdamW where it names none."""
    return value.get("kind", "adamw") if isinstance(value, Mapping) else getattr(value, "kind", None)


Optimizer = Annotated[Annotated[AdamW, Tag("adamw")] | Annotated[SGD, Tag("sgd")], Discriminator(_kind)]
"""The type of a config's key."""


Spec = TypeVar("Spec", bound=OptimizerSpec)


def _recognised(
    spec: type[Spec], slots: Collection[str], hyper: Hyper, keys: Collection[str], signature: str
) -> Spec | None:
    """`spec` with the checkpoint's values, where the slots are its own. signature: a key that torch's groups of this
    optimizer alone have; it decides where there are no slots yet. Groups of a foreign tool may hold fewer keys."""
    try:
        known = spec.model_validate({key: hyper[key] for key in keys if key in hyper})
    except ValidationError:
        return None
    names = {slot.name for slot in known.slots}
    return known if (set(slots) == names and names) or (not slots and _is_signed(hyper, signature)) else None


COMMON_KEYS = {
    *("params", "lr", "initial_lr", "weight_decay", "maximize", "foreach", "capturable", "differentiable", "fused"),
    *("name", "max_lr", "min_lr", "base_momentum", "max_momentum"),  # a script's, and what torch's schedules keep
}
"""Keys of a group that say nothing about which optimizer it is of."""
OWN_KEYS = {
    "betas": {"betas", "eps", "amsgrad", "decoupled_weight_decay", "bias_correction"},
    "momentum": {"momentum", "dampening", "nesterov"},
}
"""By signature, the keys that an optimizer's groups have besides: torch's, and those of DeepSpeed's Adam."""


def _is_signed(hyper: Hyper, signature: str) -> bool:
    """Whether a group without state yet is of that optimizer: it has the signature, and no key of another one. RMSprop
    has a momentum too, and Lion betas but no eps; where amsgrad is set a third moment is kept, and torch's Adam says
    whether it is."""
    own = signature in hyper and set(hyper) <= COMMON_KEYS | OWN_KEYS[signature]
    adam = hyper.get("amsgrad", "differentiable" in hyper) is False and "eps" in hyper
    return own and (signature != "betas" or adam)


def recognise(slots: Collection[str], hypers: Iterable[Hyper] = ()) -> OptimizerSpec | None:
    """The optimizer that left these slots in groups with these hyper-parameters (weight decay: the largest); None for
    an optimizer that is not registered. A state without slots, whose groups say no more than a rate and a decay, is
    AdamW's before its first step."""
    most: Hyper = max(hypers, key=lambda hyper: float(hyper.get("weight_decay", 0.0)), default={})
    specs = (spec.recognise(slots, most) for spec in OPTIMIZERS.values())
    if known := next((spec for spec in specs if spec is not None), None):
        return known
    return AdamW() if not slots and set(most) <= COMMON_KEYS else None


def require(slots: Collection[str], hypers: Collection[Hyper] = ()) -> OptimizerSpec:
    """The same. Raises UserError that names the slots of an optimizer that is not registered."""
    if spec := recognise(slots, hypers):
        return spec
    known = {kind: [slot.name for slot in spec.model_validate({}).slots] for kind, spec in OPTIMIZERS.items()}
    listed = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in known.items())
    foreign = sorted(set(slots) - {name for names in known.values() for name in names}) or sorted(slots)
    if foreign:
        state = ", ".join(f"'{name}'" for name in foreign)
        raise UserError(f"optimizer state {state} belongs to no optimizer that is known here ({listed})")
    keys = sorted({key for hyper in hypers for key in hyper})
    raise UserError(f"optimizer groups with {', '.join(keys)} belong to no optimizer that is known here ({listed})")
