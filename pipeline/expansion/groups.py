"""Which optimizer group every parameter of a result is in: DeepSpeed's flat files name nothing, so the script that
loads them must make the same groups."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from pipeline import checkpoints
from pipeline.checkpoints.state import Group, State
from pipeline.errors import UserError
from pipeline.growth.plan import GrowthPlan
from pipeline.optim.optimizers import AdamW, OptimizerSpec, Slot
from pipeline.optim.parameter_groups import GroupRule


@dataclass(frozen=True)
class Grouping:
    """The groups of a result, its parameters that are in none, and what the script that loads it must know."""

    groups: tuple[Group, ...] = ()
    frozen: tuple[str, ...] = ()
    remark: str | None = None

    def holders(self, optimizer: OptimizerSpec, slot: Slot) -> set[str]:
        """The parameters for which the optimizer keeps a slot."""
        having = (group.names for group in self.groups if slot in optimizer.slots_in(group.hyper))
        return {name for names in having for name in names}


NO_GROUPS = Grouping()
"""Of files without optimizer state."""


def of_the_stage(large: PretrainedConfig, optimizer: OptimizerSpec) -> Grouping:
    """The groups that this pipeline trains in."""
    return Grouping(checkpoints.fresh_groups(large, optimizer))


def of_the_source(
    folder: Path, state: State, small: PretrainedConfig, large: PretrainedConfig, growth: GrowthPlan
) -> Grouping:
    """Every parameter in the group of the source's parameter in whose place it stands, with that group's
    hyper-parameters, in the order of the module's `named_parameters()`; frozen where that is. A source without groups
    gives those of `of_the_stage`. Raises UserError where the source's groups have another order, of which the script
    alone knows the rule."""
    if not state.groups:
        return of_the_stage(large, AdamW())
    _require_order(folder, state, small)
    if any(each.origin is None for each in growth.tensors):
        return _of_layers_from_none(folder, state, small, large)
    origins = {each.target: each.origin for each in growth.tensors}
    order = [name for name in checkpoints.parameter_order(large) if name in origins]
    shapes = {each.target: each.shape for each in growth.tensors}
    groups = tuple(
        Group(_ordered([n for n in order if origins[n] in group.names], shapes, group, state), _hyper(group, state))
        for group in state.groups
    )
    frozen = tuple(name for name in order if origins[name] in state.frozen)
    return Grouping(groups, frozen, _differing_layers(state, growth))


def _of_layers_from_none(folder: Path, state: State, small: PretrainedConfig, large: PretrainedConfig) -> Grouping:
    """The groups of a model whose source had no layers: this pipeline's, where the source has them. Raises UserError
    where a script has grouped the source otherwise: in which groups it would put layers is not known."""
    optimizer = state.optimizer()
    own = [group.names for group in checkpoints.fresh_groups(small, optimizer)]
    if state.frozen or own != [group.names for group in state.groups]:
        raise UserError(
            f"{folder}: its model has no layers, and in which groups of its optimizer new ones would be is not known: "
            "take the weights alone (--format huggingface)"
        )
    return of_the_stage(large, optimizer)


def _differing_layers(state: State, growth: GrowthPlan) -> str | None:
    """In words where new layers go whose origins are grouped, or frozen, otherwise than another layer."""
    number = {name: index for index, group in enumerate(state.groups) for name in group.names}
    kinds: dict[str, set[int | None]] = {}
    for param in growth.source.rows():
        if param.layer is not None:
            kinds.setdefault(param.template or param.name, set()).add(number.get(param.name))
    deeper = any(len(origins) > len({each.origin for each in origins}) for origins in growth.layers.values())
    if not deeper or all(len(groups) == 1 for groups in kinds.values()):
        return None
    return (
        "the source's optimizer groups differ from layer to layer: a new layer is in those of the layer from which it "
        "comes (plan.json, layers), and a script that loads the result must group it so too"
    )


def _ordered(names: list[str], shapes: Mapping[str, tuple[int, ...]], group: Group, state: State) -> tuple[str, ...]:
    """Names in the order of the module's `named_parameters()`, as the optimizer orders a group."""
    known = state.known_optimizer
    return tuple(known.order_in(group.hyper, names, shapes.__getitem__) if known else names)


def _require_order(folder: Path, state: State, config: PretrainedConfig) -> None:
    order = checkpoints.parameter_order(config)
    shapes = {name: tensor.shape for name, tensor in state.tensors.items()}
    for number, group in enumerate(state.groups):
        mine = set(group.names)
        ordered = _ordered([name for name in order if name in mine], shapes, group, state)
        for name, expected in zip(group.names, ordered, strict=True):
            if name != expected:
                raise UserError(
                    f"{folder}: group {number} of its optimizer has '{name}' before '{expected}', other than "
                    "named_parameters(); by which rule a larger model's parameters are ordered there is not known: "
                    "take the weights alone (--format huggingface)"
                )


def _hyper(group: Group, state: State) -> dict[str, Any]:
    """A group's hyper-parameters; AdamW's own where the optimizer is not known, of which a fresh one is written."""
    if state.known_optimizer and group.hyper:
        return group.hyper
    return checkpoints.fresh_hyper(AdamW(), GroupRule(bool(group.hyper.get("weight_decay"))))
