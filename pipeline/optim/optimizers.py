"""The optimizers that this pipeline trains with, reshards and grows: one specification each.

A specification says how torch builds the optimizer, which hyper-parameters its groups have, and which state it keeps
for every parameter. Readers, writers and growth ask it; nothing else names a slot. To add one: a class, and its line
in `OPTIMIZERS` and `Optimizer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from pipeline.errors import UserError
from pipeline.optim.parameter_groups import GroupRule, MuonRateFactors, ParameterKind, RateFactors
from pipeline.records.strict import Strict

if TYPE_CHECKING:
    import torch

Hyper = Mapping[str, Any]
"""Hyper-parameters of one optimizer group, as torch keeps them: lr, weight_decay, …"""
Share = Annotated[float, Field(ge=0, lt=1)]
Shape = tuple[int, ...]
Name = TypeVar("Name")


@dataclass(frozen=True)
class Slot:
    """One tensor that the optimizer keeps for every parameter, in its shape.

    power: it transforms as this power of a gradient (1: a mean of gradients, 2: a mean of squared gradients).
    """

    name: str
    power: Literal[1, 2]


class OptimizerSpec(Strict):
    """What every specification has. keeps_step: whether torch counts the steps of every parameter in its state.
    decoupled: whether it decays weights beside the update, not in the gradient. fused_on: the types of devices on which
    torch computes all of an update in one kernel. universal_stages: the ZeRO stages whose engine loads its state from
    universal files. not_beside: keys of DeepSpeed's zero_optimization that are not tested with it."""

    keeps_step: ClassVar[bool]
    decoupled: ClassVar[bool] = True
    fused_on: ClassVar[frozenset[str]] = frozenset()
    universal_stages: ClassVar[tuple[int, ...]] = (1, 2)
    not_beside: ClassVar[tuple[str, ...]] = ()

    kind: str
    weight_decay: float = Field(default=0.01, ge=0, description="of matrices; norms and biases are not decayed")
    clip: float = Field(default=1.0, ge=0, description="largest global gradient norm; 0: no clipping")
    rates: RateFactors = Field(RateFactors(), description="factors on the schedule's rate, by kind of parameter")

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The optimizer's state slots, in torch's order."""
        raise NotImplementedError

    def slots_in(self, hyper: Hyper) -> tuple[Slot, ...]:
        """Those that it keeps for the parameters of a group with these hyper-parameters."""
        return self.slots

    def counts_steps_in(self, hyper: Hyper) -> bool:
        """Whether torch counts the steps of these parameters."""
        return self.keeps_step

    def order_in(self, hyper: Hyper, members: Sequence[Name], shape: Callable[[Name], Shape]) -> list[Name]:
        """The members of a group, given in the module's order, as the optimizer orders them."""
        return list(members)

    def refusal(self, zero_stage: int, precision: str, sums: str | None) -> str | None:
        """Why DeepSpeed trains wrongly with it so, in words; None where it is right. sums: in which gradients of bf16
        are summed; None in other precisions."""
        return None

    def rule(self, kind: ParameterKind, decayed: bool) -> GroupRule:
        """How parameters of a kind, of those that are decayed or not, are trained."""
        return GroupRule(decayed, self.rates.of(kind))

    def hyper(self, rule: GroupRule) -> dict[str, Any]:
        """The hyper-parameters of a group but for its rate, by torch's names."""
        raise NotImplementedError

    def first_updates(self, hyper: Hyper, own: float, counted: float) -> float:
        """The factor on updates of a group that makes them right for entries whose state began at zero `own` steps ago,
        where the optimizer counts `counted` steps, both with this one. 1: it does not correct by that count."""
        return 1.0

    def continues(self, other: OptimizerSpec) -> bool:
        """Whether it can go on from the state that `other` has left: of the same kind, with the same slots."""
        return self.kind == other.kind and self.slots == other.slots

    def fresh(self, rule: GroupRule, lr: float) -> dict[str, Any]:
        """What a group of the fresh optimizer says, its parameters aside."""
        raise NotImplementedError

    @classmethod
    def recognise(cls, slots: Collection[str], hypers: Sequence[Hyper]) -> Self | None:
        """The specification of a checkpoint with these slots (none before the first step) and the hyper-parameters of
        its groups, of which there is one at least; None when the optimizer is another one."""
        raise NotImplementedError


class TorchOptimizer(OptimizerSpec):
    """An optimizer of torch's own, which treats all groups alike."""

    def build(
        self, groups: Iterable[dict[str, Any]], lr: float = 0.0, fused: bool | None = None
    ) -> torch.optim.Optimizer:
        """torch's optimizer over `groups` ("params", and hyper-parameters that differ from the specification's). fused:
        in one kernel, as `fused_on` says where; None: as torch chooses."""
        raise NotImplementedError

    def fresh(self, rule: GroupRule, lr: float) -> dict[str, Any]:
        import torch

        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], **self.hyper(rule)}]
        (group,) = self.build(groups, lr=lr).param_groups
        return {key: value for key, value in group.items() if key != "params"}


class AdamW(TorchOptimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""

    keeps_step: ClassVar[bool] = True
    fused_on: ClassVar[frozenset[str]] = frozenset({"cpu", "cuda"})
    universal_stages: ClassVar[tuple[int, ...]] = (1, 2, 3)

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: float = Field(default=1e-8, ge=0)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return Slot("exp_avg", 1), Slot("exp_avg_sq", 2)

    def hyper(self, rule: GroupRule) -> dict[str, Any]:
        return {"weight_decay": self.weight_decay if rule.decayed else 0.0, "betas": self.betas, "eps": self.eps}

    def first_updates(self, hyper: Hyper, own: float, counted: float) -> float:
        first, second = hyper["betas"]
        seen, all_steps = (math.sqrt(1 - second**steps) / (1 - first**steps) for steps in (own, counted))
        return float(seen / all_steps)

    def build(
        self, groups: Iterable[dict[str, Any]], lr: float = 0.0, fused: bool | None = None
    ) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(
            groups, lr=lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=fused
        )

    @classmethod
    def recognise(cls, slots: Collection[str], hypers: Sequence[Hyper]) -> Self | None:
        return _recognised(cls, slots, _most_decayed(hypers), ("weight_decay", "betas", "eps"), signature="betas")


class SGD(TorchOptimizer):
    """Stochastic gradient descent with momentum; torch keeps no step count for it."""

    keeps_step: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False

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
    def recognise(cls, slots: Collection[str], hypers: Sequence[Hyper]) -> Self | None:
        keys = ("weight_decay", "momentum", "nesterov")
        return _recognised(cls, slots, _most_decayed(hypers), keys, signature="momentum")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("'nesterov' needs a momentum above 0")
        return self


USE_MUON = "use_muon"
"""A key of all groups of DeepSpeed's Muon: whether it trains their parameters by Muon, or by AdamW."""


class Muon(OptimizerSpec):
    """DeepSpeed's Muon (Jordan et al., kellerjordan.github.io/posts/muon): the matrices inside the layers by momentum
    that is orthogonalised, everything else by AdamW. An update's size is the rate's alone, whatever the gradient's."""

    fused_on: ClassVar[frozenset[str]] = AdamW.fused_on
    universal_stages: ClassVar[tuple[int, ...]] = ()
    not_beside: ClassVar[tuple[str, ...]] = ("offload_optimizer", "reduce_scatter", "use_multi_rank_bucket_allreduce")

    kind: Literal["muon"] = "muon"
    momentum: Share = 0.95
    ns_method: Literal["gram", "standard"] = Field(
        "gram", description="how the momentum is orthogonalised: Newton-Schulz on the Gram matrix, or on the matrix"
    )
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: float = Field(default=1e-8, ge=0)
    clip: float = Field(default=0.0, ge=0, description="largest global gradient norm; 0: no clipping")
    rates: MuonRateFactors = Field(
        MuonRateFactors(), description="factors on the schedule's rate, which is AdamW's, by kind of parameter"
    )

    @property
    def slots(self) -> tuple[Slot, ...]:
        return (*self._of_muon, *AdamW().slots)

    @property
    def _of_muon(self) -> tuple[Slot, ...]:
        return (Slot("momentum_buffer", 1),)

    def slots_in(self, hyper: Hyper) -> tuple[Slot, ...]:
        return self._of_muon if hyper.get(USE_MUON) else AdamW().slots

    def counts_steps_in(self, hyper: Hyper) -> bool:
        return not hyper.get(USE_MUON)

    def order_in(self, hyper: Hyper, members: Sequence[Name], shape: Callable[[Name], Shape]) -> list[Name]:
        """DeepSpeed orders matrices by their shapes, largest first."""
        return sorted(members, key=shape, reverse=True) if hyper.get(USE_MUON) else list(members)

    def refusal(self, zero_stage: int, precision: str, sums: str | None) -> str | None:
        """Right are stage 0, stage 1 by DeepSpeed's BF16_Optimizer, and without clipping the others, but for stage 2 in
        bf16, and bf16 sums (measured, 0.19.8)."""
        if precision == "fp16":
            return "precision fp16: Muon's momentum would sum gradients of different loss scales; choose bf16 or fp32"
        right = zero_stage == 0 or (zero_stage, sums) == (1, "fp32")
        if self.clip and not right:
            return (
                f"optimizer.clip {self.clip:g}: at zero_stage {zero_stage} DeepSpeed takes Muon's gradient norm behind "
                "the orthogonalisation, and would shrink every update; leave it out, or choose zero_stage 0"
            )
        if zero_stage and (sums == "bf16" or (zero_stage, sums) == (2, "fp32")):
            return (
                f"zero_stage {zero_stage} in bf16 with {sums} sums: DeepSpeed keeps Muon's momentum in bf16 there, and "
                "loses small gradients; choose zero_stage 1 or 3 with gradient_sums fp32, or precision fp32"
            )
        return None

    def first_updates(self, hyper: Hyper, own: float, counted: float) -> float:
        return 1.0 if hyper.get(USE_MUON) else self._beside.first_updates(hyper, own, counted)

    def rule(self, kind: ParameterKind, decayed: bool) -> GroupRule:
        return replace(super().rule(kind, decayed), muon=kind == "hidden")

    def hyper(self, rule: GroupRule) -> dict[str, Any]:
        if rule.muon:
            own = {"momentum": self.momentum, "ns_method": self.ns_method}
            return {"weight_decay": self.weight_decay if rule.decayed else 0.0, **own, USE_MUON: True}
        return {**self._beside.hyper(rule), USE_MUON: False}

    def fresh(self, rule: GroupRule, lr: float) -> dict[str, Any]:
        if rule.muon:
            return {"lr": lr, **self.hyper(rule)}
        return {**self._beside.fresh(rule, lr), USE_MUON: False}

    @property
    def _beside(self) -> AdamW:
        return AdamW(weight_decay=self.weight_decay, betas=self.betas, eps=self.eps)

    @classmethod
    def recognise(cls, slots: Collection[str], hypers: Sequence[Hyper]) -> Self | None:
        if not all(USE_MUON in hyper for hyper in hypers) or not set(slots) <= {slot.name for slot in cls().slots}:
            return None
        said: dict[str, Any] = {"weight_decay": _most_decayed(hypers).get("weight_decay", 0.0)}
        for hyper in hypers:
            keys = ("momentum", "ns_method") if hyper[USE_MUON] else ("betas", "eps")
            said |= {key: hyper[key] for key in keys if key in hyper}
        try:
            return cls.model_validate(said)
        except ValidationError:
            return None


OPTIMIZERS: dict[str, type[OptimizerSpec]] = {"muon": Muon, "adamw": AdamW, "sgd": SGD}
"""By kind, in the order in which a checkpoint is held against them: a single group of Muon's looks like another's."""


def _kind(value: object) -> object:
    """The kind that a config names; AdamW where it names none."""
    return value.get("kind", "adamw") if isinstance(value, Mapping) else getattr(value, "kind", None)


Optimizer = Annotated[
    Annotated[AdamW, Tag("adamw")] | Annotated[SGD, Tag("sgd")] | Annotated[Muon, Tag("muon")], Discriminator(_kind)
]
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
    groups = [*hypers] or [{}]
    specs = (spec.recognise(slots, groups) for spec in OPTIMIZERS.values())
    if known := next((spec for spec in specs if spec is not None), None):
        return known
    return AdamW() if not slots and set(_most_decayed(groups)) <= COMMON_KEYS else None


def _most_decayed(hypers: Sequence[Hyper]) -> Hyper:
    return max(hypers, key=lambda hyper: float(hyper.get("weight_decay", 0.0)))


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
